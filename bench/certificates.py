"""An authority, a server's certificate for 127.0.0.1 and an operator's, made afresh."""

from pathlib import Path

from yikatong.core.access.certificates import Authority, Subject, write_pair

OPERATOR = "yikatong:operator:bench"


def make_certificates(folder: Path, identity: str = OPERATOR) -> Authority:
    """Write ca.pem and crl.pem, server.pem and server.key, client.pem and client.key."""
    authority = Authority.make(folder, "test authority", days=1)
    write_pair(authority, folder / "server", Subject(dns=("localhost",), ips=("127.0.0.1",)), days=1)
    write_pair(authority, folder / "client", Subject(uri=identity), days=1)
    return authority
