"""Trust tokens as a hostile server could make them."""

import pytest

import aegisagent


@pytest.mark.feature("hostile-garbage")
def test_a_trust_token_that_no_server_takes_back_is_a_denial_and_is_not_kept(edge, mode, recorder):
    def work(protect):
        protected = protect(recorder)
        edge.replace["authorize"] = lambda honest: (200, honest[1] | {"trust_token": "x" * 4097})
        with pytest.raises(aegisagent.DeniedUnverified) as denied:
            protected("a")
        assert (denied.value.code, recorder.calls) == ("bad_reply", [])
        edge.replace["authorize"] = lambda honest: (200, honest[1] | {"trust_token": "x" * 4096})
        protected("a")
        protected("b")

    mode.run(edge.url, work)
    assert [len(asked["trace"].get("trust_token", "")) for asked in edge.sent("authorize")] == [0, 0, 4096]
