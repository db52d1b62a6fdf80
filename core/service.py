"""The service port: every method over grpc.aio, as bytes in and bytes out.

Messages of the hot methods go to the engine unread. The others are parsed here, run on the writer's thread in order with the
taps, or, where they read the journal, beside it."""

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from yikatong.core import commands, limits, queries
from yikatong.core.access import access, approvals, audit, lockout
from yikatong.core.access.access import Access, Resolved
from yikatong.core.access.callers import LOCAL, Caller, bound_of, current, serving
from yikatong.core.access.certificates import identity_of_pem
from yikatong.core.access.oversight import Oversight
from yikatong.core.access.rate_limits import Rates
from yikatong.core.access.tls import Tls
from yikatong.core.acquiring import authorizations, merchants, purses
from yikatong.core.cards import batches, card_actions, codes, deny_list, e_cards, issuance, loads
from yikatong.core.cards.codes import CodeChecker, RideCodeRules
from yikatong.core.day import disputes, exceptions, participant_files, payments, reconcile, settle
from yikatong.core.day.day import Day, DayRules
from yikatong.core.day.totals import operator_totals
from yikatong.core.errors import ConfigError, DeadlineOver, Forbidden, InvalidRequest, Overloaded, YikatongError
from yikatong.core.failpoints import failpoint
from yikatong.core.identity import persons
from yikatong.core.identity.identity_service import Identity, IdentityOptions
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.metrics import Metrics
from yikatong.core.paging import page_size
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.rules.card_rules import default as default_card_rules
from yikatong.core.rules.purse_rules import PurseRules
from yikatong.core.rules.purse_rules import read as read_purse_rules
from yikatong.core.status import status_of
from yikatong.core.types import Result, wire
from yikatong.core.writer import Core, Work
from yikatong.ext.engine import NONE, is_card_number, local_seconds
from yikatong.v1 import (
    account_service_pb2,
    approval_service_pb2,
    audit_service_pb2,
    authorization_service_pb2,
    card_life_service_pb2,
    card_service_pb2,
    clearing_service_pb2,
    code_service_pb2,
    deny_list_service_pb2,
    e_card_service_pb2,
    exception_service_pb2,
    identity_service_pb2,
    issuance_service_pb2,
    load_service_pb2,
    lockout_service_pb2,
    merchant_service_pb2,
    person_service_pb2,
    purse_service_pb2,
    reconciliation_service_pb2,
    settlement_service_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[bytes, float | None], Awaitable[bytes]]
Request = TypeVar("Request", bound=Message)

DESCRIPTORS: Final = [
    descriptor
    for module in (
        tap_service_pb2,
        account_service_pb2,
        card_service_pb2,
        terminal_service_pb2,
        clearing_service_pb2,
        deny_list_service_pb2,
        reconciliation_service_pb2,
        exception_service_pb2,
        authorization_service_pb2,
        merchant_service_pb2,
        purse_service_pb2,
        settlement_service_pb2,
        person_service_pb2,
        e_card_service_pb2,
        audit_service_pb2,
        lockout_service_pb2,
        approval_service_pb2,
        load_service_pb2,
        card_life_service_pb2,
        issuance_service_pb2,
        code_service_pb2,
        identity_service_pb2,
    )
    for descriptor in module.DESCRIPTOR.services_by_name.values()
]
SERVICES: Final = [descriptor.full_name for descriptor in DESCRIPTORS]
"""Full names of all services."""


def deliver_to(loop: asyncio.AbstractEventLoop) -> Callable[[list[Work]], None]:
    """A `deliver` for Core: finished work resolves the future in its tag, or is given to the function there; a whole group in
    one turn of the loop."""

    def resolve(works: list[Work]) -> None:
        for work in works:
            if not isinstance(work.tag, asyncio.Future):
                work.tag(work)
                continue
            if work.tag.done():  # the caller has gone
                continue
            if work.error is not None:
                work.tag.set_exception(work.error)
            else:
                work.tag.set_result(work.response)

    return lambda works: _call_soon(loop, resolve, works)


def _call_soon(loop: asyncio.AbstractEventLoop, resolve: Callable[[list[Work]], None], works: list[Work]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve, works)


def parse(kind: type[Request], request: bytes) -> Request:
    """A request message. Raises InvalidRequest."""
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise InvalidRequest("request", "is not protobuf") from error


class Service:
    """The methods, over one core."""

    def __init__(
        self,
        core: Core,
        metrics: Metrics,
        rules: PurseRules | None = None,
        day_rules: DayRules | None = None,
        provider: KeyProvider | None = None,
        *,
        tls: Tls | None = None,
        settlement_bank: str = "",
        e_card_devices_max: int = limits.E_CARD_DEVICES_MAX,
        rates: Rates | None = None,
        card_rules: CardRules | None = None,
        ride_code_rules: RideCodeRules = RideCodeRules(),  # noqa: B008 (it is immutable)
        identity_options: IdentityOptions | None = None,
    ) -> None:
        """Without `rules` and `card_rules`, those that come with the package; without `day_rules` nothing can be cleared or
        sealed; without `provider` there are no loads, persons, codes and assertions; without `tls` whoever calls is the machine's
        own operator."""
        self._core = core
        self._loop = asyncio.get_running_loop()
        self.day = Day(lambda: core.journal.read(), self._ask_blocking, day_rules or DayRules())
        self._metrics = metrics
        self._provider = provider
        self._calls = 0
        self._tls = tls
        self._settlement_bank = settlement_bank
        rules_of_access = [access.rule_of(method) for service in DESCRIPTORS for method in service.methods]
        self.access = Access(rules_of_access, lambda command: self._ask(command, None), _district_of_card, RESOLVERS)
        self.oversight = Oversight(
            lambda command, deadline: self._submit(Work(command=command, deadline=deadline)),
            lambda: core.journal.next_sequence, metrics, provider, persons.person_of_card, rates,
            self._guard,
        )  # fmt: skip
        self.identity: Identity | None = None
        purse_rules = rules or read_purse_rules()
        self.methods: dict[str, dict[str, Method]] = {
            "yikatong.v1.TapService": {
                "AuthorizeTap": self.authorize_tap,
                "SubmitTaps": self.submit_taps,
                "GetTap": self.get_tap,
            },
            "yikatong.v1.AccountService": {
                "GetBalance": self._command(account_service_pb2.GetBalanceRequest, commands.get_balance),
                "ListTransactions": self.list_transactions,
                "TopUp": self._command(account_service_pb2.TopUpRequest, commands.top_up),
                "BatchTopUp": self._command(account_service_pb2.BatchTopUpRequest, commands.batch_top_up),
            },
            "yikatong.v1.CardService": {
                "RegisterCards": self._command(card_service_pb2.RegisterCardsRequest, commands.register_cards),
                "GetCard": self._command(card_service_pb2.GetCardRequest, commands.get_card),
                "SetEntitlement": self._command(card_service_pb2.SetEntitlementRequest, commands.set_entitlement),
            },
            "yikatong.v1.TerminalService": {
                "RegisterTerminals": self._command(terminal_service_pb2.RegisterTerminalsRequest, commands.register_terminals),
                "GetTerminal": self._command(terminal_service_pb2.GetTerminalRequest, commands.get_terminal),
            },
            "yikatong.v1.DenyListService": {
                "DenyCard": self.deny_card,
                "AllowCard": self._command(deny_list_service_pb2.AllowCardRequest, deny_list.allow_card),
                "GetDenyList": self.get_deny_list,
            },
            "yikatong.v1.ClearingService": {
                "GetOperatorTotals": self.get_operator_totals,
                "GetTrialBalance": self._command(clearing_service_pb2.GetTrialBalanceRequest, commands.get_trial_balance),
                "CloseWindow": self._of_day(clearing_service_pb2.CloseWindowRequest, Day.close),
                "ClearWindow": self._of_day(clearing_service_pb2.ClearWindowRequest, Day.clear),
                "GetWindow": self._of_day(clearing_service_pb2.GetWindowRequest, Day.get_window),
                "ListWindows": self._of_day(clearing_service_pb2.ListWindowsRequest, Day.list_windows),
                "ListClearingExceptions": self._of_day(clearing_service_pb2.ListClearingExceptionsRequest, Day.list_exceptions),
                "ListPositions": self._of_day(clearing_service_pb2.ListPositionsRequest, Day.list_positions),
            },
            "yikatong.v1.SettlementService": {
                "SettleWindow": self._of_day(settlement_service_pb2.SettleWindowRequest, Day.settle),
                "AbortWindow": self._of_day(settlement_service_pb2.AbortWindowRequest, Day.abort),
                "ResumeWindow": self._of_day(settlement_service_pb2.ResumeWindowRequest, Day.resume),
                "ListSettlementFiles": self.list_settlement_files,
                "GetSettlementFile": self.get_settlement_file,
                "GetReport": self._of_day(settlement_service_pb2.GetReportRequest, Day.get_report),
                "SealWindow": self._of_day(settlement_service_pb2.SealWindowRequest, Day.seal),
                "GetSeal": self._of_day(settlement_service_pb2.GetSealRequest, Day.get_seal),
                "GetReceipt": self._of_day(settlement_service_pb2.GetReceiptRequest, Day.get_receipt),
            },
            "yikatong.v1.ReconciliationService": {
                "IngestBankFile": self._of_bank(self.ingest_bank_file),
                "IngestParticipantFile": self.ingest_participant_file,
                "ListDifferences": self._command(reconciliation_service_pb2.ListDifferencesRequest, exceptions.list_differences),
                "GetReconciliation": self._command(
                    reconciliation_service_pb2.GetReconciliationRequest, payments.get_reconciliation
                ),
                "ListInstructions": self._of_bank(
                    self._command(reconciliation_service_pb2.ListInstructionsRequest, payments.list_instructions)
                ),
                "ReissueInstruction": self._command(
                    reconciliation_service_pb2.ReissueInstructionRequest, payments.reissue_instruction
                ),
            },
            "yikatong.v1.ExceptionService": {
                "TakeUpException": self._of_day(exception_service_pb2.TakeUpExceptionRequest, Day.take_up),
                "ListExceptions": self._command(exception_service_pb2.ListExceptionsRequest, exceptions.list_exceptions),
                "GetException": self._command(exception_service_pb2.GetExceptionRequest, exceptions.get_exception),
                "AssignException": self._command(exception_service_pb2.AssignExceptionRequest, exceptions.assign_exception),
                "ResolveException": self._command(exception_service_pb2.ResolveExceptionRequest, exceptions.resolve_exception),
                "ProposeAdjustment": self._command(exception_service_pb2.ProposeAdjustmentRequest, exceptions.propose_adjustment),
                "ApproveAdjustment": self._command(exception_service_pb2.ApproveAdjustmentRequest, exceptions.approve_adjustment),
                "RejectAdjustment": self._command(exception_service_pb2.RejectAdjustmentRequest, exceptions.reject_adjustment),
                "GetAdjustment": self._command(exception_service_pb2.GetAdjustmentRequest, exceptions.get_adjustment),
                "OpenDispute": self._command(exception_service_pb2.OpenDisputeRequest, disputes.open_dispute),
                "RespondToDispute": self._command(exception_service_pb2.RespondToDisputeRequest, disputes.respond_to_dispute),
                "DecideDispute": self._command(exception_service_pb2.DecideDisputeRequest, disputes.decide_dispute),
                "WithdrawDispute": self._command(exception_service_pb2.WithdrawDisputeRequest, disputes.withdraw_dispute),
                "GetDispute": self._command(exception_service_pb2.GetDisputeRequest, disputes.get_dispute),
                "ListDisputes": self._command(exception_service_pb2.ListDisputesRequest, disputes.list_disputes),
            },
            "yikatong.v1.AuthorizationService": self._authorization_methods(purse_rules),
            "yikatong.v1.MerchantService": {
                "RegisterMerchants": self._command(merchant_service_pb2.RegisterMerchantsRequest, merchants.register_merchants),
                "GetMerchant": self._command(merchant_service_pb2.GetMerchantRequest, merchants.get_merchant),
            },
            "yikatong.v1.PurseService": self._purse_methods(purse_rules),
            "yikatong.v1.PersonService": self._person_methods(),
            "yikatong.v1.AuditService": {
                "ListAccesses": self._command_by(
                    audit_service_pb2.ListAccessesRequest, functools.partial(audit.list_accesses, persons.person_of_card)
                ),
                "ListCallerAccesses": self._command_by(audit_service_pb2.ListCallerAccessesRequest, audit.list_caller_accesses),
            },
            "yikatong.v1.LockoutService": {
                "GetLockout": self._command(lockout_service_pb2.GetLockoutRequest, lockout.get_lockout),
                "ListLockouts": self._command(lockout_service_pb2.ListLockoutsRequest, lockout.list_lockouts),
                "LiftLockout": self._command(lockout_service_pb2.LiftLockoutRequest, lockout.lift_lockout),
            },
            "yikatong.v1.ApprovalService": {
                "ListApprovals": self._command(approval_service_pb2.ListApprovalsRequest, approvals.list_approvals),
                "GetApproval": self.oversight.get_approval,
                "ApproveRequest": self.oversight.approve,
                "RejectRequest": self._command_by(approval_service_pb2.RejectRequestRequest, approvals.reject),
            },
            "yikatong.v1.LoadService": {} if provider is None else self._load_methods(provider),
            "yikatong.v1.CardLifeService": self._card_life_methods(card_rules or default_card_rules()),
            "yikatong.v1.IssuanceService": self._issuance_methods(card_rules or default_card_rules()),
        }
        if provider is not None:
            self.methods["yikatong.v1.ECardService"] = self._e_card_methods(provider, e_card_devices_max)
            self.methods["yikatong.v1.CodeService"] = self._code_methods(provider, ride_code_rules)
            self.identity = Identity(provider, identity_options or IdentityOptions(), self._submit)
            self.methods["yikatong.v1.IdentityService"] = self.identity.methods()
        self.oversight.watch(self.methods)

    def _authorization_methods(self, rules: PurseRules) -> dict[str, Method]:
        pb = authorization_service_pb2
        return {
            "Authorize": self._swept(pb.AuthorizeRequest, functools.partial(authorizations.authorize, rules)),
            "BatchAuthorize": functools.partial(self.batch_authorize, rules),
            "IncrementAuthorization": self._swept(
                pb.IncrementAuthorizationRequest, functools.partial(authorizations.increment_authorization, rules)
            ),
            "Capture": self._swept(pb.CaptureRequest, authorizations.capture),
            "VoidAuthorization": self._swept(pb.VoidAuthorizationRequest, authorizations.void_authorization),
            "Refund": self._swept(pb.RefundRequest, authorizations.refund),
            "ReverseTransaction": self._swept(pb.ReverseTransactionRequest, authorizations.reverse_transaction),
            "GetAuthorization": self._swept(pb.GetAuthorizationRequest, authorizations.get_authorization),
            "ListAuthorizations": self._swept(pb.ListAuthorizationsRequest, authorizations.list_authorizations),
        }

    def _load_methods(self, provider: KeyProvider) -> dict[str, Method]:
        return {name: self._command(kind, command) for name, (kind, command) in loads.methods(provider).items()}

    def _purse_methods(self, rules: PurseRules) -> dict[str, Method]:
        pb = purse_service_pb2
        return {
            "OpenPurse": self._swept(pb.OpenPurseRequest, functools.partial(purses.open_purse, rules)),
            "FundPurse": self._swept(pb.FundPurseRequest, purses.fund_purse),
            "ListPurses": self._swept(pb.ListPursesRequest, functools.partial(purses.list_purses, rules)),
            "ClosePurse": self._swept(pb.ClosePurseRequest, purses.close_purse),
        }

    def _person_methods(self) -> dict[str, Method]:
        pb = person_service_pb2
        return {
            "RegisterPerson": self._keyed(pb.RegisterPersonRequest, persons.register_person),
            "GetPerson": self._keyed(pb.GetPersonRequest, persons.get_person),
            "CorrectPerson": self._then_destroyed(self._keyed(pb.CorrectPersonRequest, persons.correct_person)),
            "ErasePerson": self._then_destroyed(self._command_by(pb.ErasePersonRequest, persons.erase_person)),
            "SetConcession": self._command_by(pb.SetConcessionRequest, persons.set_concession),
            "ListConcessionsDue": self._command_by(pb.ListConcessionsDueRequest, persons.list_concessions_due),
        }

    def _e_card_methods(self, provider: KeyProvider, devices_max: int) -> dict[str, Method]:
        pb = e_card_service_pb2
        activate = functools.partial(e_cards.activate_device, provider, devices_max)
        return {
            "IssueECard": self._command(pb.IssueECardRequest, functools.partial(e_cards.issue_e_card, provider)),
            "StartActivation": self._command(pb.StartActivationRequest, functools.partial(e_cards.start_activation, provider)),
            "ActivateDevice": self._command(pb.ActivateDeviceRequest, activate),
            "RevokeDevice": self._command(pb.RevokeDeviceRequest, e_cards.revoke_device),
            "ListDevices": self._command(pb.ListDevicesRequest, e_cards.list_devices),
            "GetECard": self._command(pb.GetECardRequest, e_cards.get_e_card),
            "CancelECard": self._command(pb.CancelECardRequest, e_cards.cancel_e_card),
        }

    def _card_life_methods(self, rules: CardRules) -> dict[str, Method]:
        pb = card_life_service_pb2
        report_loss = functools.partial(card_actions.report_loss, rules.temporary_loss_s)
        return {
            "ReportLoss": self._command_by(pb.ReportLossRequest, report_loss),
            "LiftLoss": self._command_by(pb.LiftLossRequest, card_actions.lift_loss),
            "FreezeCard": self._command_by(pb.FreezeCardRequest, card_actions.freeze_card),
            "UnfreezeCard": self._command_by(pb.UnfreezeCardRequest, card_actions.unfreeze_card),
            "CancelCard": self._command_by(pb.CancelCardRequest, card_actions.cancel_card),
            "GetCardStatus": self._command_by(pb.GetCardStatusRequest, card_actions.get_card_status),
        }

    def _issuance_methods(self, rules: CardRules) -> dict[str, Method]:
        pb = issuance_service_pb2
        ruled = functools.partial
        return {
            "ApplyForCard": self._keyed(pb.ApplyForCardRequest, ruled(issuance.apply_for_card, rules)),
            "CheckApplication": self._command_by(pb.CheckApplicationRequest, ruled(issuance.check_application, rules)),
            "AdvanceApplications": self._command_by(pb.AdvanceApplicationsRequest, ruled(issuance.advance_applications, rules)),
            "ReportProduced": self._command_by(pb.ReportProducedRequest, ruled(issuance.report_produced, rules)),
            "DeliverCard": self._command_by(pb.DeliverCardRequest, ruled(issuance.deliver_card, rules)),
            "PickUpCard": self._command_by(pb.PickUpCardRequest, ruled(issuance.pick_up_card, rules)),
            "WithdrawApplication": self._command_by(pb.WithdrawApplicationRequest, ruled(issuance.withdraw_application, rules)),
            "SetBankAccount": self._command_by(pb.SetBankAccountRequest, issuance.set_bank_account),
            "GetApplication": self._command_by(pb.GetApplicationRequest, issuance.get_application),
            "ListOverdue": self._command_by(pb.ListOverdueRequest, issuance.list_overdue),
            "OpenBatch": self._command_by(pb.OpenBatchRequest, batches.open_batch),
            "UploadBatchRows": functools.partial(self.upload_batch_rows, rules),
            "GetBatch": self._command_by(pb.GetBatchRequest, batches.get_batch),
            "ListBatchRows": self._command_by(pb.ListBatchRowsRequest, batches.list_batch_rows),
        }

    def _code_methods(self, provider: KeyProvider, rules: RideCodeRules) -> dict[str, Method]:
        checker = CodeChecker(rules)
        return {
            "GetCode": functools.partial(self.get_code, provider),
            "GetRideCode": functools.partial(self.get_ride_code, provider, rules),
            "TapByCode": functools.partial(self.tap_by_code, provider, checker),
        }

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server registers. Requests and responses stay bytes."""
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.unary_unary_rpc_method_handler(functools.partial(self._serve, service, name)) for name in methods},
            )
            for service, methods in self.methods.items()
        ]

    async def _serve(self, service: str, name: str, request: bytes, context: Context) -> bytes:
        """One call: count it, bound it, run it, and turn an error into its status."""
        self._metrics.on_call_started(service, name)
        begun = time.perf_counter()
        code = grpc.StatusCode.OK
        self._calls += 1
        try:
            remaining_s = context.time_remaining()
            if remaining_s is not None and remaining_s <= 0:
                raise DeadlineOver("the deadline had passed before the work began")
            if self._calls > limits.CALLS_AT_ONCE_MAX:
                raise Overloaded(f"more than {limits.CALLS_AT_ONCE_MAX} calls at once")
            deadline = None if remaining_s is None else time.monotonic() + remaining_s
            caller = self._caller_of(context)
            with serving(caller):
                return await self.oversight.serve(f"{service}/{name}", request, deadline)
        except YikatongError as error:
            code, status = status_of(error)
            await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
            raise AssertionError("abort always raises") from error
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("%s/%s failed", service, name)
            await context.abort(code, "an internal error; it was logged")
            raise AssertionError("abort always raises") from None
        finally:
            self._calls -= 1
            self._metrics.on_call_handled(service, name, code.name, time.perf_counter() - begun)

    def _guard(self, name: str, caller: Caller, request: bytes, run: Callable[[], Awaitable[bytes]]) -> Awaitable[bytes]:
        """Run a call of "yikatong.v1.CardService/GetCard" if its caller may make it."""
        service, _, method = name.partition("/")
        return self.access.run(service, method, caller, request, run)

    def _caller_of(self, context: Context) -> Caller:
        """Who makes a call. Raises Unauthenticated."""
        if self._tls is None or not self._tls.is_mutual:
            return LOCAL
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        return self._tls.identify(identity_of_pem(bytes(shown[0])) if shown else None)

    # ---- on the writer's thread ----

    async def _submit(self, work: Work) -> Any:
        work.tag = asyncio.get_running_loop().create_future()
        self._core.submit(work)
        return await work.tag

    async def _ask(self, command: Callable[[Memory], Any], deadline: float | None) -> Any:
        return await self._submit(Work(command=lambda memory, _: command(memory), deadline=deadline))

    def _command(self, kind: type[Request], command: Callable[[Memory, Request, int], Message]) -> Method:
        async def method(request: bytes, deadline: float | None) -> bytes:
            message = parse(kind, request)
            work = Work(command=lambda memory, time_us: command(memory, message, time_us), deadline=deadline)
            response: Message = await self._submit(work)
            return response.SerializeToString()

        return method

    def _command_by(self, kind: type[Request], command: Callable[[Memory, Request, int, Caller], Message]) -> Method:
        """A command that asks who calls."""

        async def method(request: bytes, deadline: float | None) -> bytes:
            message, caller = parse(kind, request), current()
            work = Work(command=lambda memory, time_us: command(memory, message, time_us, caller), deadline=deadline)
            response: Message = await self._submit(work)
            return response.SerializeToString()

        return method

    def _keyed(self, kind: type[Request], command: Callable[[KeyProvider, Memory, Request, int, Caller], Message]) -> Method:
        """A command that works with keys and asks who calls."""

        def run(memory: Memory, message: Request, time_us: int, caller: Caller) -> Message:
            if self._provider is None:
                raise ConfigError("keys", "there are none")
            return command(self._provider, memory, message, time_us, caller)

        return self._command_by(kind, run)

    def _then_destroyed(self, method: Method) -> Method:
        """A method after which no key of a person is left that it dropped."""

        async def then(request: bytes, deadline: float | None) -> bytes:
            response = await method(request, deadline)
            await asyncio.to_thread(persons.destroy_dropped_keys, self._ask_blocking)
            return response

        return then

    def _swept(self, kind: type[Request], command: Callable[[Memory, Request, int], Message]) -> Method:
        """A command before which holds are let go whose time is over."""
        return self._command(kind, authorizations.swept(command))

    async def batch_authorize(self, rules: PurseRules, request: bytes, deadline: float | None) -> bytes:
        """AuthorizationService.BatchAuthorize, part by part. If one fails, those before it are found done when the batch comes
        again."""
        pb = authorization_service_pb2
        items = parse(pb.BatchAuthorizeRequest, request).requests
        commands.check_items("requests", items)
        authorize = self._swept(pb.BatchAuthorizeRequest, functools.partial(authorizations.batch_authorize, rules))
        answer = b""  # parts of a repeated field behind each other are the whole of it
        for at in range(0, len(items), limits.AUTHORIZE_ITEMS_MAX):
            part = pb.BatchAuthorizeRequest(requests=items[at : at + limits.AUTHORIZE_ITEMS_MAX])
            answer += await authorize(part.SerializeToString(), deadline)
        return answer

    async def authorize_tap(self, request: bytes, deadline: float | None) -> bytes:
        """TapService.AuthorizeTap."""
        work = Work(request=request, stored=False, bound=bound_of(current()), deadline=deadline)
        response: bytes = await self._submit(work)
        return response

    async def submit_taps(self, request: bytes, deadline: float | None) -> bytes:
        """TapService.SubmitTaps."""
        work = Work(request=request, stored=True, bound=bound_of(current()), deadline=deadline)
        response: bytes = await self._submit(work)
        return response

    async def deny_card(self, request: bytes, deadline: float | None) -> bytes:
        """DenyListService.DenyCard."""
        arrived_s = time.time()
        message = parse(deny_list_service_pb2.DenyCardRequest, request)
        response: deny_list_service_pb2.DenyCardResponse = await self._submit(
            Work(command=lambda memory, time_us: deny_list.deny_card(memory, message, time_us), deadline=deadline)
        )
        if response.result == wire(Result.ACCEPTED) and not response.duplicate:
            reported_s = message.reported_time_us / 1e6 if message.reported_time_us else arrived_s
            self._metrics.on_card_denied(time.time() - reported_s)
        return response.SerializeToString()

    async def get_deny_list(self, request: bytes, deadline: float | None) -> bytes:
        """DenyListService.GetDenyList."""
        message = parse(deny_list_service_pb2.GetDenyListRequest, request)
        response: deny_list_service_pb2.GetDenyListResponse = await self._submit(
            Work(command=lambda memory, time_us: deny_list.get_deny_list(memory, message, time_us), deadline=deadline)
        )
        if response.kind == deny_list.DELTA:
            now_s = time.time()
            self._metrics.on_denials_fetched([now_s - entry.denied_since_s for entry in response.entries if entry.reasons])
        return response.SerializeToString()

    async def upload_batch_rows(self, rules: CardRules, request: bytes, deadline: float | None) -> bytes:
        """IssuanceService.UploadBatchRows, slice by slice. If it ends in between, those before are found done when it comes
        again."""
        del deadline  # each slice is done or not; the caller asks how far it came
        if self._provider is None:
            raise ConfigError("keys", "there are none")
        message = parse(issuance_service_pb2.UploadBatchRowsRequest, request)
        response = await asyncio.to_thread(batches.upload, rules, self._provider, message, current(), self._ask_blocking)
        return response.SerializeToString()

    def _ask_blocking(self, command: Callable[[Memory, int], Any]) -> Any:
        """Run a command from another thread than the loop's."""
        return asyncio.run_coroutine_threadsafe(self._submit(Work(command=command)), self._loop).result()

    # ---- beside it ----

    def _of_day(self, kind: type[Request], step: Callable[[Day, Request], Message]) -> Method:
        """A step of the day: it reads the journal and asks the writer, on a thread of its own."""

        async def method(request: bytes, deadline: float | None) -> bytes:
            message = parse(kind, request)
            response = await asyncio.to_thread(step, self.day, message)
            return response.SerializeToString()

        return method

    def _of_bank(self, method: Method) -> Method:
        """A method that of all banks only the settlement account's may call."""

        async def checked(request: bytes, deadline: float | None) -> bytes:
            access.check_bank(current(), self._settlement_bank)
            return await method(request, deadline)

        return checked

    async def list_settlement_files(self, request: bytes, deadline: float | None) -> bytes:
        """SettlementService.ListSettlementFiles."""
        access.check_bank(caller := current(), self._settlement_bank)
        message = parse(settlement_service_pb2.ListSettlementFilesRequest, request)
        response = await asyncio.to_thread(self.day.list_files, message)
        shown = [file for file in response.files if _may_fetch(caller, file.name)]
        return settlement_service_pb2.ListSettlementFilesResponse(files=shown).SerializeToString()

    async def get_settlement_file(self, request: bytes, deadline: float | None) -> bytes:
        """SettlementService.GetSettlementFile."""
        access.check_bank(caller := current(), self._settlement_bank)
        message = parse(settlement_service_pb2.GetSettlementFileRequest, request)
        if not _may_fetch(caller, message.name):
            raise Forbidden("own", "not the caller's own, or not there")
        response = await asyncio.to_thread(self.day.get_file, message)
        return response.SerializeToString()

    async def get_tap(self, request: bytes, deadline: float | None) -> bytes:
        """TapService.GetTap."""
        message = parse(tap_service_pb2.GetTapRequest, request)
        sequence, rules = await self._ask(lambda memory: (_sequence_of(memory, message), memory.tariffs.rules), deadline)
        response, card, terminal = await asyncio.to_thread(queries.get_tap, self._core.journal, sequence, rules)
        known_card, known_terminal, operator_id = await self._ask(
            lambda memory: commands.card_and_terminal(memory, card, terminal), deadline
        )
        if known_card and not response.tap.card_number:
            response.tap.card_number, response.tap.issuer_id = known_card["card_number"], known_card["issuer_id"]
        if known_terminal:
            response.tap.terminal_number = known_terminal["terminal_number"]
        response.operator_id = operator_id
        return response.SerializeToString()

    async def list_transactions(self, request: bytes, deadline: float | None) -> bytes:
        """AccountService.ListTransactions."""
        message = parse(account_service_pb2.ListTransactionsRequest, request)
        size = page_size(message.page_size)
        card, newest, purses = await self._ask(lambda memory: commands.newest_of_card(memory, message.card_number), deadline)
        start = queries.parse_transactions_token(message.page_token, card) if message.page_token else newest
        found, token = await asyncio.to_thread(queries.list_transactions, self._core.journal, card, purses, start, size)
        await self._ask(lambda memory: _name_terminals(memory, found), deadline)
        response = account_service_pb2.ListTransactionsResponse(
            transactions=[transaction for transaction, _ in found], next_page_token=token
        )
        return response.SerializeToString()

    async def get_operator_totals(self, request: bytes, deadline: float | None) -> bytes:
        """ClearingService.GetOperatorTotals."""
        message = parse(clearing_service_pb2.GetOperatorTotalsRequest, request)
        if local_seconds(message.settlement_date, 0) < 0:
            raise InvalidRequest("settlement_date", f"{message.settlement_date} is no date YYYYMMDD of 2000 to 2099")
        if message.sequence_last and message.sequence_last < message.sequence_first:
            raise InvalidRequest("sequence_last", "is before sequence_first")
        names = await self._ask(commands.names, deadline)
        caller = current()
        whose = caller.name if caller.role == access.ACQUIRER else None

        def work() -> bytes:
            with self._core.journal.read() as reader:
                totals = operator_totals(reader, names, message.settlement_date, message.sequence_first, message.sequence_last)
            shown = [operator for operator in totals.operators if whose in (None, operator.operator_id)]
            response = clearing_service_pb2.GetOperatorTotalsResponse(
                total_taps=sum(operator.taps for operator in shown),
                total_fen=sum(operator.amount_fen for operator in shown),
                sequence=totals.sequence,
            )
            for operator in shown:
                response.operators.add(
                    operator_id=operator.operator_id,
                    taps=operator.taps,
                    amount_fen=operator.amount_fen,
                    test_taps=operator.test_taps,
                )
            return response.SerializeToString()

        return await asyncio.to_thread(work)

    async def get_code(self, provider: KeyProvider, request: bytes, deadline: float | None) -> bytes:
        """CodeService.GetCode."""
        message = parse(code_service_pb2.GetCodeRequest, request)
        random = secrets.token_bytes(codes.TOKEN_RANDOM_BYTES)
        work = Work(command=lambda memory, time_us: codes.get_code(provider, random, memory, message, time_us), deadline=deadline)
        response: Message = await self._submit(work)
        return response.SerializeToString()

    async def get_ride_code(self, provider: KeyProvider, rules: RideCodeRules, request: bytes, deadline: float | None) -> bytes:
        """CodeService.GetRideCode: the writer says whether, the provider signs beside it."""
        message = parse(code_service_pb2.GetRideCodeRequest, request)
        work = Work(command=lambda memory, time_us: codes.grant_ride_code(provider, memory, message, time_us), deadline=deadline)
        grant = await self._submit(work)
        if isinstance(grant, Result):
            return code_service_pb2.GetRideCodeResponse(result=wire(grant)).SerializeToString()
        response = await asyncio.to_thread(codes.issue_ride_code, provider, rules, grant)
        return response.SerializeToString()

    async def tap_by_code(self, provider: KeyProvider, checker: CodeChecker, request: bytes, deadline: float | None) -> bytes:
        """CodeService.TapByCode: signatures are verified beside the writer, codes reserved on it; what follows is a tap."""
        message = parse(code_service_pb2.TapByCodeRequest, request)
        codes.check_items(message.taps)
        caller = current()
        checked = await asyncio.to_thread(checker.check, message.taps)

        def reserve(part: list[codes.Checked]) -> Callable[[Memory, int], Any]:
            return lambda memory, time_us: codes.reserve(provider, memory, part, message.stored, time_us, caller)

        answers: list[codes.Reserved | tap_service_pb2.TapOutcome] = []
        for at in range(0, len(checked), limits.CODES_AT_ONCE):
            work = Work(command=reserve(checked[at : at + limits.CODES_AT_ONCE]), deadline=deadline)
            answers += await self._submit(work)
        reserved = [each for each in answers if isinstance(each, codes.Reserved)]
        failpoint("code-reserved")
        await asyncio.to_thread(codes.prove, provider, reserved)
        outcomes = iter(await self._run_taps([each.tap for each in reserved], stored=message.stored))
        response = code_service_pb2.TapByCodeResponse(
            outcomes=[next(outcomes) if isinstance(each, codes.Reserved) else each for each in answers]
        )
        return response.SerializeToString()

    async def _run_taps(self, taps: list[tap_service_pb2.Tap], *, stored: bool) -> list[tap_service_pb2.TapOutcome]:
        """Taps through the flow of all taps, as if they had come in requests of their own."""
        if not taps:
            return []
        if stored:
            request = tap_service_pb2.SubmitTapsRequest(taps=taps).SerializeToString()
            answer = await self._submit(Work(request=request, stored=True))
            return list(tap_service_pb2.SubmitTapsResponse.FromString(answer).outcomes)
        requests = [tap_service_pb2.AuthorizeTapRequest(tap=tap).SerializeToString() for tap in taps]
        answered = await asyncio.gather(*(self._submit(Work(request=each, stored=False)) for each in requests))
        return [tap_service_pb2.AuthorizeTapResponse.FromString(each).outcome for each in answered]

    async def ingest_bank_file(self, request: bytes, deadline: float | None) -> bytes:
        """ReconciliationService.IngestBankFile."""
        message = parse(reconciliation_service_pb2.IngestBankFileRequest, request)
        bank = await asyncio.to_thread(payments.read_bank_file, message)
        work = Work(command=lambda memory, time_us: payments.ingest_bank_file(memory, message, bank, time_us), deadline=deadline)
        response: Message = await self._submit(work)
        return response.SerializeToString()

    async def ingest_participant_file(self, request: bytes, deadline: float | None) -> bytes:
        """ReconciliationService.IngestParticipantFile."""
        message = parse(reconciliation_service_pb2.IngestParticipantFileRequest, request)
        other = await asyncio.to_thread(participant_files.read, message)
        access.check_participant(current(), other.participant)
        before = await self._ask(lambda memory: participant_files.before(memory, message, other), deadline)
        if not isinstance(before, int):
            answer: bytes = before.SerializeToString()
            return answer

        def own_taps() -> reconcile.OwnTaps:
            with self._core.journal.read() as reader:
                return reconcile.own_taps(reader, before, other.settlement_date)

        slots = await asyncio.to_thread(own_taps)
        own = await self._ask(lambda memory: participant_files.named(memory, slots), deadline)
        differences = await asyncio.to_thread(reconcile.reconcile_taps, own, other)
        work = Work(
            command=lambda memory, time_us: participant_files.book(memory, message, other, own, differences, time_us),
            deadline=deadline,
        )
        response: Message = await self._submit(work)
        return response.SerializeToString()


def _may_fetch(caller: Caller, name: str) -> bool:
    """Whether a settlement file is a caller's: the statements of an acquirer, and what the bank is told to do."""
    if caller.role == access.ACQUIRER:
        stems = (settle.file_stem(participant) for participant in access.participants_of(caller.name))
        return name.startswith(tuple(stem + "." for stem in stems))
    return caller.role != access.BANK or name.startswith(("payments.", "claims."))


def _district_of_card(memory: Memory, card_number: str) -> str | None:
    slot = int(memory.engine.find_card(card_number)) if is_card_number(card_number) else NONE
    person = None if slot == NONE else persons.person_of_card(memory, slot)
    document = None if person is None else persons.load(memory, person)
    return None if document is None else document.district


def _behind_dispute(memory: Memory, message: Any) -> Resolved:
    return Resolved(*disputes.parties_of(memory, message.dispute_id))


def _behind_purse(memory: Memory, message: Any) -> Resolved:
    return Resolved((purses.funder_of(memory, message.card_number, message.purse_id),))


def _behind_terminals(memory: Memory, message: Any) -> Resolved:
    """The operator of all terminals in a request, where it is one and the same."""
    operators = set()
    for number in {tap.terminal_number for tap in message.taps}:
        slot = int(memory.engine.find_terminal(number)) if len(number) == 6 else NONE
        operators.add("" if slot == NONE else commands.card_and_terminal(memory, NONE, slot)[2])
    return Resolved(tuple(operators) if len(operators) == 1 else ())


RESOLVERS: Final = {
    "CodeService.TapByCode": _behind_terminals,
    "ExceptionService.RespondToDispute": _behind_dispute,
    "ExceptionService.WithdrawDispute": _behind_dispute,
    "PurseService.FundPurse": _behind_purse,
    "PurseService.ClosePurse": _behind_purse,
}
"""What is behind the ids in requests of these methods (core/access/access.py)."""


def _sequence_of(memory: Memory, message: tap_service_pb2.GetTapRequest) -> int:
    match message.WhichOneof("key"):
        case "sequence":
            if not 1 <= message.sequence < memory.engine.next_sequence:
                raise InvalidRequest("sequence", f"the journal holds 1 to {memory.engine.next_sequence - 1}")
            return message.sequence
        case "card_counter":
            return commands.tap_by_card_counter(memory, message.card_counter.card_number, message.card_counter.atc)
        case "terminal_counter":
            counter = message.terminal_counter
            return commands.tap_by_terminal_counter(memory, counter.terminal_number, counter.terminal_sequence)
        case _:
            raise InvalidRequest("key", "sequence, card_counter or terminal_counter is wanted")


def _name_terminals(memory: Memory, found: list[tuple[account_service_pb2.Transaction, int]]) -> None:
    for transaction, slot in found:
        _, terminal, operator_id = commands.card_and_terminal(memory, NONE, slot)
        if terminal:
            transaction.terminal_number = terminal["terminal_number"]
            transaction.operator_id = operator_id
