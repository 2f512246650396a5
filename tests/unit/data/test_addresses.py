"""Which addresses are read, which are not, and which numbers are out of bounds."""

from __future__ import annotations

import ipaddress
import socket
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsi_cli.engine.data.addresses import HostRules, is_open, read_address, shown
from vlsi_cli.engine.data.records import BadRecord

ANY = HostRules()

GOOD = {
    "http://example.org/a.png": "http://example.org/a.png",
    "HTTPS://EXAMPLE.org": "https://example.org/",
    "https://example.org:443/a": "https://example.org/a",
    "https://example.org:80/a": "https://example.org:80/a",
    "http://example.org?x=1#part": "http://example.org/?x=1",
    "http://example.org/a b/ü.png?q=ü": "http://example.org/a%20b/%C3%BC.png?q=%C3%BC",
    "http://example.org/a%20b": "http://example.org/a%20b",
    "http://example.org/../..//x": "http://example.org/../..//x",
    "http://xn--bcher-kva.example/": "http://xn--bcher-kva.example/",
    "http://8.8.8.8/a.png": "http://8.8.8.8/a.png",
    "http://[2606:4700::1111]/a": "http://[2606:4700::1111]/a",
    "http://[2606:4700:0:0:0:0:0:1111]/": "http://[2606:4700::1111]/",
    "http://under_score.example/a": "http://under_score.example/a",
    "http://example.org/@a:b": "http://example.org/@a:b",
}  # fmt: skip

BAD = [
    "", "example.org/a.png", "//example.org/a.png", "ftp://example.org/a", "file:///etc/passwd", "data:image/png,A",
    "gopher://example.org/", "javascript:alert(1)", "http:/example.org", "http:example.org", "http://", "http:///a",
    "http://?", "http://#", "https://:443/", "http://example.org:/", "http://example.org:0/", "http://example.org:99999/",
    "http://example.org:22/", "http://example.org:8080/", "http://example.org:80:80/", "http://example.org:8O/",
    # user names, and what other programs take for the end of one
    "http://me@example.org/", "http://me:secret@example.org/", "http://example.org@127.0.0.1/", "http://@example.org/",
    "http://example.org\\@127.0.0.1/", "http://127.0.0.1\\.example.org/", "http:\\\\example.org\\a",
    # what could be read in two ways
    " http://example.org/", "http://example.org/ ", "http://example.org/\n", "http://exa\tmple.org/", "ht\ntp://example.org/",
    "http://example.org/a\r\nHost: 127.0.0.1", "http://example.org/\0", "http://example.org /", "http://exam ple.org/",
    "http://example.org./", "http://.example.org/", "http://example..org/", "http://-a.example/", "http://a-.example/",
    "http://%31%32%37.0.0.1/", "http://example%2eorg/", "http://example.org%00.png/", "http://exa*mple.org/",
    # this machine and its neighbours, in every spelling
    "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/",
    "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.01/", "http://0/", "http://0.0.0.0/", "http://0x/",
    "http://00000000000000000000177.0.0.1/", "http://127.0.0.1.:80/", "http://127.000.000.001/", "http://1.2.3.4.5/",
    "http://10.0.0.8/", "http://172.16.3.4/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/", "http://100.100.100.200/", "http://168.63.129.16/", "http://192.0.0.192/", "http://198.18.0.1/",
    "http://224.0.0.1/", "http://255.255.255.255/", "http://240.0.0.1/", "http://192.88.99.1/",
    "http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:8.8.8.8]/",
    "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::808:808]/", "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/", "http://[2002:808:808::]/", "http://[2001:0:1::1]/", "http://[2001:db8::1]/", "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[fec0::1]/", "http://[ff02::1]/",
    "http://[100::1]/", "http://[3fff::1]/", "http://[5f00::1]/", "http://[::1/", "http://::1/", "http://[::1]a/", "http://[]/",
    "http://[v1.a]/", "http://[127.0.0.1]/",
    # letters that other programs turn into these
    "http://１２７.0.0.1/", "http://127。0。0。1/", "http://ⓛocalhost/", "http://exаmple.org/", "http://bücher.example/",
    "http://example.org/\ud800", "http://\ud800.example/",
    "http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/", "http://example.org/" + "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_plain_addresses_are_read(text: str) -> None:
    assert str(read_address(text, ANY)) == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_others_are_not(text: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read_address(text, ANY)
    assert caught.value.reason == "image-address"


_SPELLINGS = [
    lambda n: str(n),
    lambda n: f"{n:#x}",
    lambda n: f"0{n:o}",
    lambda n: ".".join(f"{byte:#x}" for byte in n.to_bytes(4, "big")),
    lambda n: ".".join(f"0{byte:o}" for byte in n.to_bytes(4, "big")),
    lambda n: ".".join(f"{byte:03}" for byte in n.to_bytes(4, "big")),
    lambda n: f"{n >> 24}.{n & 0xFFFFFF}",
    lambda n: f"{n >> 24}.{n >> 16 & 255}.{n & 0xFFFF}",
    lambda n: str(ipaddress.IPv4Address(n)),
    lambda n: str(ipaddress.IPv4Address(n)) + ".",
    lambda n: f"[::ffff:{ipaddress.IPv4Address(n)}]",
    lambda n: f"[::{ipaddress.IPv4Address(n)}]",
    lambda n: f"[64:ff9b::{ipaddress.IPv4Address(n)}]",
    lambda n: f"[2002:{n >> 16:x}:{n & 0xFFFF:x}::]",
    lambda n: f"me@{ipaddress.IPv4Address(n)}",
]  # fmt: skip


_CLOSED = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "0.0.0.0/8"]


@given(
    network=st.sampled_from(_CLOSED),
    place=st.floats(0, 1, exclude_max=True),
    spell=st.sampled_from(_SPELLINGS),
    tail=st.sampled_from(["", "/", ":80/", "/a.png?b#c"]),
)  # fmt: skip
def test_no_spelling_of_a_closed_number_is_read(network, place, spell, tail) -> None:  # type: ignore[no-untyped-def]
    inside = ipaddress.IPv4Network(network)
    number = int(inside[int(place * inside.num_addresses)])
    with pytest.raises(BadRecord):
        read_address(f"http://{spell(number)}{tail}", ANY)


@given(st.text(st.sampled_from("htp:/.@[]%\\#?0123456789xabcfoe-_ \té。") | st.characters(), max_size=40))
def test_whatever_is_read_is_asked_plainly(rest: str) -> None:
    """What comes out is a plain request: ASCII without spaces, and a host that no resolver takes for another number."""
    try:
        address = read_address(f"http://{rest}", ANY)
    except BadRecord:
        return
    assert set(str(address)) <= set(string.ascii_letters + string.digits + string.punctuation)
    assert address.port in (80, 443)
    try:
        number = socket.inet_aton(address.host)  # takes every spelling that a C library takes
    except OSError:
        return
    assert str(ipaddress.IPv4Address(number)) == address.host
    assert is_open(ipaddress.IPv4Address(number), private=False)


@given(st.integers(0, 2**32 - 1) | st.sampled_from([0x7F000001, 0xA9FEA9FE]))
def test_numbers_that_the_standard_library_calls_closed_are_closed(number: int) -> None:
    v4 = ipaddress.IPv4Address(number)
    if not v4.is_global or v4.is_multicast or v4.is_reserved:
        assert not is_open(v4, private=False)


@given(st.integers(0, 2**128 - 1) | st.integers(0x2000 << 112, (0x4000 << 112) - 1))
def test_so_are_those_of_version_6(number: int) -> None:
    v6 = ipaddress.IPv6Address(number)
    embeds = v6.ipv4_mapped or v6.sixtofour or v6.teredo
    if not v6.is_global or v6.is_multicast or v6.is_reserved or v6.is_site_local or embeds:
        assert not is_open(v6, private=False)


def test_private_hosts() -> None:
    rules = HostRules(private_hosts=["images.corp", "10.0.0.8:9000"])
    assert read_address("http://images.corp/a", rules).private
    assert read_address("http://10.0.0.8:9000/a", rules).port == 9000
    assert not read_address("http://example.org/a", rules).private
    for text in ("http://images.corp:9000/", "http://10.0.0.8/", "http://10.0.0.9:9000/"):
        with pytest.raises(BadRecord):
            read_address(text, rules)
    for number in ("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "100.100.100.200",
                   "fd00:ec2::254", "168.63.129.16", "::ffff:10.0.0.8"):  # fmt: skip
        assert not is_open(ipaddress.ip_address(number), private=True)
    for number in ("10.0.0.8", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "8.8.8.8"):
        assert is_open(ipaddress.ip_address(number), private=True)


def test_a_list_of_hosts() -> None:
    rules = HostRules(hosts=["images.example", "*.cdn.example", "other.example:8443"])
    for text in (
        "http://images.example/",
        "https://a.cdn.example/",
        "http://a.b.cdn.example/",
        "https://other.example:8443/",
    ):
        read_address(text, rules)
    for text in ("http://example/", "http://cdn.example/", "http://evilcdn.example/", "http://images.example.org/",
                 "https://other.example/", "http://images.example:8443/", "http://8.8.8.8/"):  # fmt: skip
        with pytest.raises(BadRecord, match="not among the hosts"):
            read_address(text, rules)


def test_messages_hold_no_secrets() -> None:
    text = "https://me:hunter2@example.org/a.png?X-Signature=geheim#frag"
    assert shown(text) == "https://example.org/a.png?..."
    with pytest.raises(BadRecord) as caught:
        read_address(text, ANY)
    assert "hunter2" not in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert len(shown("http://a.example/" + "x" * 9999)) < 200
