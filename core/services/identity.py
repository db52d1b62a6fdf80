"""IdentityService: logins, codes of others, identity checks. core/identity/identity_service.py has what they share."""

from typing import Final

from yikatong.core.identity import identity as checks
from yikatong.core.identity import login
from yikatong.core.services.host import Host, Methods
from yikatong.v1 import identity_service_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["IdentityService"]


def methods(host: Host) -> Methods:
    """By rpc."""
    if (identity := host.identity) is None:
        return {}
    return {
        "StartLogin": identity.command(login.start),
        "ScanLogin": identity.command(login.scan),
        "AnswerLogin": identity.command(login.answer),
        "GetLogin": identity.command(login.get_login),
        "RedeemTicket": identity.redeem_ticket,
        "AuthorizeApp": identity.command(login.authorize_app),
        "SetConsent": identity.command(login.set_consent),
        "GetKeySet": identity.get_key_set,
        "ResolveCode": identity.resolve_code,
        "StartCardCheck": identity.command(checks.start_card_check),
        "VerifyIdentity": identity.verify_identity,
    }
