"""Edges as processes of their own, with control and NATS behind them: what happens at one is enforced at all."""

from harness import Edge, StartFailed
from tenants import until_enforced
from waiting import unique, wait_until
from with_edges import OnDebian, WithEdges

# Control waits a second for the edges, which read everything each five: edges that hear nothing would enforce one freeze of five in time. A busy
# machine may be late a few times.
FREEZES, MOST_FREEZES = 20, 16


class Edges(WithEdges):
    """Edges as processes of their own: they believe what control signed."""

    def test_what_happens_at_one_edge_is_enforced_at_all(self):
        one, two = self.edges
        hashes = [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges * 5]
        self.assert_all_arrive(hashes)
        lanes = {line["lane"].split(".")[1] for line in self.tenant.list("/v1/receipts")}
        self.assertLessEqual({"edge-1", "edge-2", "control"}, lanes)
        self.assertTrue(all(line["verified"] for line in self.tenant.list("/v1/decisions")))
        for edge in self.edges * 3:
            self.assertEqual(self.decide(edge, tool="unheard", action="of")["decision"], "deny")
        for edge in self.edges:
            wait_until("the agent is frozen there", lambda: self.decide(edge, action="read_customer", mutates_state=False)["reason"] == "agent_frozen")

    def test_approvals_and_outcomes_go_through_an_edge(self):
        edge = self.edges[0]
        held = self.decide(edge, action="refund", parameters={"amount": 5})
        self.assertEqual(held["decision"], "require_approval", held)
        approval = held["approval"]["approval_id"]
        shown = wait_until("control has it", lambda: (reply := edge.get(f"/v1/approvals/{approval}", self.agent.token)).status == 200 and reply)
        self.assertEqual(shown.json["status"], "PENDING")
        self.tenant.post(f"/v1/approvals/{approval}/approve", key=self.tenant.key("approver", groups=["*"])).expect(200)
        consume = lambda: edge.post(f"/v1/approvals/{approval}/consume", self.agent.token, {"claimed_action_hash": held["action_hash"]})
        consume().expect(200)
        self.assertEqual(consume().status, 409)
        # What came of it, in the place of its decision: once however often it is said, and another answer is no repetition.
        path, request = f"/v1/decisions/{held['decision_id']}", unique("request")
        report = {"status": "ok", "executed_hash": held["action_hash"], "output": {"rows": 1}, "request_id": request}
        first = edge.post(f"{path}/outcome", self.agent.token, report).expect(201)
        self.assertIsNone(first["violation"])
        self.assertEqual(edge.post(f"{path}/outcome", self.agent.token, report).expect(201), first)
        stranger = self.tenant.register_agent()
        self.assertEqual(edge.post(f"{path}/outcome", stranger.token, report).status, 403)
        wait_until("the outcome is an event", lambda: self.events("tool_outcome"))
        self.assertEqual(len(self.events("tool_outcome")), 1)
        shown = edge.get(path, self.tenant.admin).expect(200)
        self.assertEqual((shown["event_id"], shown["decision"]), (held["decision_id"], "require_approval"))
        self.control.stop()
        for asked in (f"/v1/approvals/{approval}", "/v1/approvals", path):
            self.assertEqual(edge.get(asked, self.agent.token).code, "control_unreachable")
        self.assertEqual(edge.post(f"{path}/outcome", self.agent.token, report).code, "control_unreachable")
        self.assertEqual(self.decide(edge)["decision"], "allow")

    def test_people_decide_through_an_edge(self):
        edge = self.edges[0]
        rita, sam = (self.tenant.key("approver", name, groups=["*"]) for name in ("rita", "sam"))
        held = [self.decide(edge, action="refund", parameters={"amount": amount}) for amount in (1, 2, 3)]
        approved, rejected, edited = ids = [one["approval"]["approval_id"] for one in held]
        pending = lambda: {one["approval_id"] for one in edge.get("/v1/approvals?limit=100", rita).expect(200)}
        wait_until("the list has them", lambda: pending() >= set(ids))
        decide = lambda approval, verb, key, **body: edge.post(f"/v1/approvals/{approval}/{verb}", key, body)
        consume = lambda approval, claimed: edge.post(f"/v1/approvals/{approval}/consume", self.agent.token, {"claimed_action_hash": claimed})
        # Whose key it is goes with it: the agent decides nothing of its own.
        self.assertEqual(decide(approved, "approve", self.agent.token).status, 403)
        self.assertEqual(consume(approved, held[0]["action_hash"]).code, "approval_pending")
        self.assertEqual(decide(approved, "approve", rita).expect(200)["status"], "APPROVED")
        self.assertEqual(decide(rejected, "reject", rita, reason="no").expect(200)["status"], "REJECTED")
        call = {"tool": "crm", "action": "refund", "resource": "customer-1", "mutates_state": True, "parameters": {"amount": 30}}
        other = decide(edited, "edit", rita, tool_call=call).expect(200)
        self.assertEqual((other["status"], other["original_action_hash"]), ("PENDING", held[2]["action_hash"]))
        self.assertNotEqual(other["action_hash"], held[2]["action_hash"])
        self.assertEqual(decide(edited, "approve", rita, action_hash=other["action_hash"]).code, "self_edited")
        decide(edited, "approve", sam, action_hash=other["action_hash"]).expect(200)
        self.assertEqual(consume(edited, held[2]["action_hash"]).code, "action_hash_mismatch")
        self.assertEqual(consume(rejected, held[1]["action_hash"]).code, "approval_rejected")
        consume(edited, other["action_hash"]).expect(200)
        consume(approved, held[0]["action_hash"]).expect(200)
        # Control says the same of them.
        said = [self.tenant.get(f"/v1/approvals/{approval}").expect(200)["status"] for approval in ids]
        self.assertEqual(said, ["CONSUMED", "REJECTED", "CONSUMED"])

    def test_an_approval_as_large_as_a_message_may_be_reaches_control_and_a_larger_one_is_not_promised(self):
        edge, most = self.edges[0], (1 << 20) - (16 << 10)
        refund = lambda size: self.decide(edge, action="refund", parameters={"amount": 5, "note": "x" * size})
        held = refund(most - 2048)
        self.assertEqual(held["decision"], "require_approval", held)
        approval = held["approval"]["approval_id"]
        shown = wait_until("control has it", lambda: (reply := edge.get(f"/v1/approvals/{approval}", self.agent.token)).status == 200 and reply)
        self.assertEqual(shown.json["action_hash"], held["action_hash"])
        denied = refund(most)
        self.assertEqual((denied["decision"], denied["reason"], denied["approval"]), ("deny", "approval_too_large", None))

    def test_every_kind_of_what_control_signs_reaches_every_edge_and_outlives_a_start_from_the_copy(self):
        revoked, watched, other = (self.tenant.register_agent() for _ in range(3))
        note = {"tool": "desk", "action": "note"}
        listing = {"tool": "mcp:files", "action": "list", "mutates_state": False}
        page = {"tool": "github", "action": "get_file_contents", "resource": "acme/site", "mutates_state": False, "trust": "untrusted_external"}
        large = {"parameters": {"amount": 11}}
        mail = {"context": {"channel": "inbox"}}

        def until(edges, decision, reason=None, agent=None, **call):
            expected = f"{agent and agent.id} {call} is {decision} {reason or ''}"
            for edge in edges:
                wait_until(expected, lambda: (a := self.asked(edge, agent=agent, **call))["decision"] == decision and reason in (None, a["reason"]))

        until(self.edges, "deny", "unknown_action", **note)
        until(self.edges, "deny", **listing)
        until(self.edges, "deny", **page)
        until(self.edges, "allow", **large)
        until(self.edges, "require_approval", **mail)
        self.tenant.post("/v1/tools", {"tool": "desk", "name": "Desk", "actions": [{"action": "note", "risk": "medium", "mutates_state": True}]}).expect(201)
        until(self.edges, "allow", **note)
        self.tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": []}).expect(201)
        tools = [{"name": "list", "risk": "low", "mutates_state": False, "destination": "internal", "data_access": "none"}]
        self.tenant.post("/v1/mcp/servers/files/tools", {"tools": tools}).expect(201)
        until(self.edges, "allow", **listing)
        for _ in range(2):
            self.tenant.post("/v1/mcp/servers/files/quarantine", {"reason": "a test"}).expect(200)
            until(self.edges, "deny", "mcp_server_quarantined", **listing)
            self.tenant.post("/v1/mcp/servers/files/restore", {"reason": "a test"}).expect(200)
            until(self.edges, "allow", **listing)
        policy = '@id("large") forbid (principal, action == Action::"crm/update_customer", resource) when { context.parameters has amount && context.parameters.amount > 10 };'
        self.tenant.put("/v1/policies", {"policies": policy}).expect(200)
        until(self.edges, "deny", **large)
        self.tenant.settings(force_approval_agents=[watched.id])
        until(self.edges, "require_approval", agent=watched)
        self.tenant.post("/v1/channels", {"channel": "inbox", "source_trust": "untrusted_external"}).expect(201)
        until(self.edges, "deny", **mail)
        self.tenant.post("/v1/resources", {"resource": "acme/site", "tool": "github", "visibility": "public"}).expect(201)
        until(self.edges, "allow", **page)
        other.freeze()
        until(self.edges, "deny", "agent_frozen", agent=other)
        self.tenant.post(f"/v1/agents/{other.id}/unfreeze", {"reason": "a test"}).expect(200)
        until(self.edges, "allow", agent=other)
        self.tenant.post(f"/v1/agents/{revoked.id}/revoke", {"reason": "a test"}).expect(200)
        until(self.edges, "deny", "agent_revoked", agent=revoked)

        one = self.edges[:1]
        copy = one[0].data / "feed.jsonl"
        wait_until("its copy has the last of it", lambda: revoked.id in copy.read_text() and "acme/site" in copy.read_text())
        one[0].kill9()
        self.nats.kill9()
        one[0].start()
        self.assertIn("copy on disk", one[0].log())
        until(one, "allow", **note)
        until(one, "allow", **listing)
        until(one, "deny", **large)
        until(one, "require_approval", agent=watched)
        until(one, "deny", **mail)
        until(one, "allow", **page)
        until(one, "allow", agent=other)
        until(one, "deny", "agent_revoked", agent=revoked)

    def test_an_edge_serves_its_own_tenants_only(self):
        other = self.control.tenant().register_tools()
        agent = other.register_agent()
        refused = self.send(self.edges[0], agent)
        self.assertEqual((refused.status, refused.code), (401, "tenant_not_served"))
        both = self.edge("edge-3", self.tenant, other).start()
        wait_until("the new edge knows both", lambda: all(self.send(both, one, dry_run=True).json.get("decision") == "allow" for one in (self.agent, agent)))

    def test_an_invitation_is_used_once(self):
        token = self.control.invite("edge-4", self.tenant)
        url = f"http://127.0.0.1:{self.control.port}"
        first, second = Edge(nats=self.nats), Edge(nats=self.nats)
        for edge in (first, second):
            self.addCleanup(edge.close)
        first.cli("edge", "enroll", "--control", url, "--data", first.data, stdin=token)
        said = second.cli("edge", "enroll", "--control", url, "--data", second.data, stdin=token, expect=2)
        self.assertIn("invitation is not valid", said)
        with self.assertRaises(StartFailed) as failed:
            second.start()
        self.assertIn("aegis edge invite", failed.exception.output)
        for name in ("edge.key", "trust.key", "nats.nk"):
            self.assertEqual((first.data / "keys" / name).stat().st_mode & 0o777, 0o600, name)

    def test_a_freeze_is_acknowledged_by_every_edge_that_lives(self):
        wait_until("both are heard", lambda: all(edge["live"] for edge in self.edges_listed().values()))
        self.assertEqual(set(self.edges_listed()), {"edge-1", "edge-2"})
        frozen = until_enforced(self.agent.freeze)
        self.assertEqual((frozen["edges"]["live"], frozen["edges"]["enforcing"], frozen["edges"]["silent"]), (2, 2, []))
        # At once: control waited for them.
        for edge in self.edges:
            self.assertEqual(self.decide(edge)["reason"], "agent_frozen")
        self.edges[1].kill9()
        wait_until("one is silent", lambda: not self.edges_listed()["edge-2"]["live"])
        frozen = until_enforced(self.tenant.register_agent().freeze)
        self.assertEqual((frozen["edges"]["live"], frozen["edges"]["silent"]), (1, ["edge-2"]))
        self.edges[0].kill9()
        wait_until("the other too", lambda: not self.edges_listed()["edge-1"]["live"])
        frozen = self.tenant.register_agent().freeze()
        self.assertEqual((frozen["enforced"], frozen["edges"]["live"]), (False, 0), "nobody enforces it")

    def test_a_run_that_is_tainted_at_one_edge_is_tainted_at_the_other(self):
        one, two = self.edges
        run = unique("run")
        read = {"action": "read_customer", "mutates_state": False, "run_id": run}
        self.assertEqual(self.asked(two, run_id=run)["decision"], "allow")
        self.decide(one, trust="untrusted_external", **read)
        # Without its trust token, as a caller that wants to be rid of the label would come.
        wait_until("the other knows of it", lambda: self.asked(two, run_id=run)["decision"] == "deny")
        child = {"run_id": unique("run"), "parent_run_id": run}
        self.assertEqual(self.asked(two, trace=child)["root_trust_level"], "untrusted_external", "and its child too")
        self.assertEqual(self.asked(two)["decision"], "allow", "another run is another run")
        two.kill9()
        two.start()
        wait_until("it is told again after a start", lambda: self.asked(two, run_id=run)["decision"] == "deny")

    def test_a_token_that_is_sent_back_carries_a_label_to_an_edge_that_cannot_be_told(self):
        one, two = self.edges
        run = unique("run")
        # What one edge would tell the other goes over the server.
        self.nats.kill9()
        tainted = self.decide(one, trust="untrusted_external", run_id=run, action="read_customer", mutates_state=False)
        self.assertEqual(self.asked(two, run_id=run)["decision"], "allow", "it was not told")
        echoed = {"run_id": run, "trust_token": tainted["trust_token"]}
        denied = self.asked(two, trace=echoed)
        self.assertEqual((denied["decision"], denied["root_trust_level"]), ("deny", "untrusted_external"))
        # The token of a run that nobody tainted taints none.
        clean = unique("run")
        token = self.decide(one, run_id=clean)["trust_token"]
        self.assertEqual(self.asked(two, trace={"run_id": clean, "trust_token": token})["decision"], "allow")
        self.assertEqual(self.asked(two, run_id=run)["decision"], "allow", "a dry run leaves nothing")
        self.assertEqual(self.decide(two, trace=echoed)["decision"], "deny")
        self.assertEqual(self.decide(two, run_id=run)["decision"], "deny", "from then on it knows by itself")
        # Edges that end beside a server that is gone wait for it.
        self.nats.start()

    def test_edges_hear_of_a_freeze_when_it_is_made_and_not_at_their_next_reading(self):
        wait_until("both are heard", lambda: all(edge["live"] for edge in self.edges_listed().values()))
        agents = [self.tenant.register_agent() for _ in range(FREEZES)]
        replies = [agent.freeze() for agent in agents]
        self.assertEqual({reply["edges"]["live"] for reply in replies}, {2})
        at_once = sum(reply["enforced"] for reply in replies)
        self.assertGreaterEqual(at_once, MOST_FREEZES, f"of {FREEZES}; an edge that hears nothing reads everything each five seconds")


class EdgesOnDebian(OnDebian, Edges):
    ITS_PART = {
        "test_what_happens_at_one_edge_is_enforced_at_all",
        "test_approvals_and_outcomes_go_through_an_edge",
        "test_an_approval_as_large_as_a_message_may_be_reaches_control_and_a_larger_one_is_not_promised",
        "test_a_freeze_is_acknowledged_by_every_edge_that_lives",
    }
