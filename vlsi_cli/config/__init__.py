"""What a run is: typed, frozen, without tensors; and where the values came from."""
