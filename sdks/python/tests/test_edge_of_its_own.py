"""Against an edge that is a process of its own: one base URL is enough to act, and a control plane that is gone costs an approval, not an answer."""

import os
import sys
import threading

import pytest
from where import REPOSITORY

import aegisagent

if "AEGIS_BIN" not in os.environ:
    pytest.skip("AEGIS_BIN names no program", allow_module_level=True)
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))
from harness import ControlPlane, Edge, wait_until
from nats import DEBIAN, NatsServer


@pytest.fixture
def split():
    """A control plane, an edge, a tenant and its agent."""
    server = NatsServer(DEBIAN).start()
    control = ControlPlane(nats=server).start()
    edge = Edge(nats=server)
    try:
        tenant = control.tenant().register_tools()
        agent = tenant.register_agent()
        edge.enroll(control, "edge-1", tenant).start()

        # A call that is polled for must leave no trace: five denies are a storm, for which the agent is frozen.
        def would():
            return edge.post("/v1/authorize", agent.token, agent.request(dry_run=True))

        wait_until("the edge knows the agent", lambda: would().status == 200)
        wait_until("the edge knows the tools", lambda: would().expect(200)["decision"] == "allow")
        yield control, edge, tenant, agent
    finally:
        edge.close()
        control.close()
        server.close()


def trusted(protected, *args):
    with aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run("r"):
        return protected(*args)


@pytest.mark.feature("edge-killed")
def test_an_edge_of_its_own_is_enough_to_act_and_control_that_is_gone_costs_an_approval(split, recorder):
    control, edge, tenant, agent = split
    approver = aegisagent.Client(f"http://127.0.0.1:{control.port}", tenant.key("approver", "rita", groups=("security",)))

    def approve(pending):
        def act():
            wait_until("control has it", lambda: approver.approvals("PENDING"))
            approver.approve(pending.approval_id)

        threading.Thread(target=act).start()

    with aegisagent.Client(f"http://127.0.0.1:{edge.port}", agent.token) as client:
        refund = aegisagent.protect(client, tool="crm", action="refund", on_pending=approve)(recorder)
        assert trusted(refund, "a") == "done"
        approver.close()
        control.kill9()
        update = aegisagent.protect(client, tool="crm", action="update_customer")(recorder)
        assert trusted(update, "b") == "done"
        refund = aegisagent.protect(client, tool="crm", action="refund", unreachable_s=0.5)(recorder)
        with pytest.raises(aegisagent.DeniedUnavailable, match="control_unreachable"):
            trusted(refund, "c")
    assert [call["note"] for call in recorder.calls] == ["a", "b"]
