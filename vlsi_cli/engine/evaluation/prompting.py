"""What is found and made of a record before a model is asked: digests of its pictures, its length, the prompt itself.

All of it is done by worker processes where there are some, while the model answers other questions.
"""

from __future__ import annotations

import hashlib

from vlsi_cli.engine.data.images import is_address, locate
from vlsi_cli.engine.data.lengths import prompt_length
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Record
from vlsi_cli.engine.data.template import ChatEncoder, EncodedPrompt
from vlsi_cli.engine.files import file_sha256


class PromptMaker:
    """Makes ready what a model is asked.

    Args:
        encoder: reads records as the model does.
    """

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder

    def pictures(self, record: Record) -> tuple[str, ...] | BadRecord:
        """A digest of each picture's bytes, or of its pixels where it is not a file; or why one is not there."""
        try:
            return tuple(self._digest(ref) for ref in record.images)
        except BadRecord as bad:
            return bad

    def length(self, record: Record) -> int:
        """Tokens of the prompt of the last response, as far as an order needs it.

        What cannot be used is found when the prompt is made, with the reason that it has without an order.
        """
        try:
            return prompt_length(self._encoder, record)
        except BadRecord:
            return 0

    def prompt(self, record: Record) -> EncodedPrompt | BadRecord:
        """What the last response is generated from, or why there is no such thing."""
        try:
            return self._encoder.encode_prompt(record)
        except BadRecord as bad:
            return bad

    def _digest(self, ref: ImageRef) -> str:
        if ref.picture is not None:
            about = f"{ref.picture.mode}{ref.picture.size}".encode()
            return hashlib.sha256(about + ref.picture.tobytes()).hexdigest()
        if ref.data is not None:
            return hashlib.sha256(ref.data).hexdigest()
        if is_address(ref) and self._encoder.fetch is not None:
            return hashlib.sha256(self._encoder.fetch(str(ref.path))).hexdigest()
        path = locate(ref)
        try:
            return file_sha256(path)
        except OSError as error:
            raise BadRecord("image-unreadable", f"{ref.path}: {error.strerror or error}") from error
