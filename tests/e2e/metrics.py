"""What `/metrics` shows of detection: the names, labels and types that operators build on, and that the numbers are those of what happens; and that
docs/operating.md names every metric and every setting."""

import json
import re
import tomllib

from harness import REPOSITORY
from story import Story
from waiting import wait_until

DENIES = 5
# Family → its type, and the labels of each of its samples.
OF_DETECTION = {
    "aegis_consumer_lag": ("gauge", {"partition"}),
    "aegis_detect_late": ("counter", set()),
    "aegis_detect_late_verified": ("counter", set()),
    "aegis_detect_late_waiting": ("gauge", set()),
    "aegis_detect_late_alerts": ("counter", set()),
    "aegis_detect_late_given_up": ("counter", set()),
    "aegis_detect_malformed": ("counter", set()),
    "aegis_detect_rule_records_refused": ("counter", set()),
    "aegis_detect_verify_failures": ("counter", set()),
    "aegis_detect_episodes_dropped": ("counter", set()),
    "aegis_detect_refused": ("counter", set()),
    "aegis_rule_quarantined": ("gauge", {"rule"}),
    "aegis_rule_tenants_set_aside": ("gauge", {"rule"}),
    "aegis_rule_warming": ("gauge", {"rule"}),
    "aegis_rule_window_lost": ("gauge", {"rule"}),
    "aegis_rule_window_unsaved": ("gauge", {"rule"}),
    "aegis_rule_refused": ("counter", {"rule"}),
    "aegis_rule_given_up": ("counter", {"rule"}),
    "aegis_rule_overruns": ("counter", {"rule"}),
    "aegis_rule_unfounded": ("counter", {"rule"}),
    "aegis_rule_eval_seconds": ("histogram", {"rule"}),
    "soc_detections": ("counter", {"rule", "severity"}),
    "soc_mttd_seconds": ("histogram", set()),
}
SUFFIXES = {"gauge": {""}, "counter": {"_total"}, "histogram": {"_sum", "_count", "_bucket"}}
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')


def families(text):
    """Family → (type, [(suffix, labels, value)]), of a text in which each family stands under its own type."""
    found, name = {}, None
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            found[name] = (kind, [])
        elif not line.startswith("#"):
            sample, labels, value = SAMPLE.match(line).groups()
            assert sample.startswith(name), f"{sample} stands under {name}"
            found[name][1].append((sample[len(name):], dict(LABEL.findall(labels or "")), float(value)))
    return found


class OfDetection(Story):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Nothing waits for detection, so that nothing is shown of its rules before it reads.
        wait_until("detection runs", lambda: "aegis_rule_quarantined{" in cls.aegis.get("/metrics").text)

    def shown(self):
        return families(self.aegis.get("/metrics").text)

    def value(self, family, suffix, **labels):
        """The one sample with these labels."""
        [value] = [value for end, its, value in self.shown()[family][1] if end == suffix and {**its, **labels} == its]
        return value

    def test_they_have_their_names_types_and_labels_and_there_are_no_others(self):
        self.agent.authorize()
        shown = self.shown()
        prefixes = ("aegis_consumer_", "aegis_detect_", "aegis_rule_", "soc_detections", "soc_mttd_")
        self.assertEqual({name for name in shown if name.startswith(prefixes)}, set(OF_DETECTION))
        for name, (kind, labels) in OF_DETECTION.items():
            with self.subTest(name):
                its_kind, samples = shown[name]
                self.assertEqual(its_kind, kind)
                self.assertEqual({suffix for suffix, _, _ in samples}, SUFFIXES[kind])
                for suffix, its, _ in samples:
                    self.assertEqual(set(its), labels | ({"le"} if suffix == "_bucket" else set()))

    def test_each_rule_that_runs_has_its_own_and_nobody_else_has(self):
        listed = json.loads(self.aegis.cli("rules", "lint", "--json"))["files"]
        headers = [file["report"]["rule"]["header"] for file in listed]
        running = {header["id"]: header["severity"] for header in headers if header["mode"] != "disabled"}
        self.assertGreater(len(running), 30)
        shown = self.shown()
        for name, (_, labels) in OF_DETECTION.items():
            if labels == {"rule"}:
                self.assertEqual({its["rule"] for _, its, _ in shown[name][1]}, set(running), name)
        detections = {its["rule"]: its["severity"] for _, its, _ in shown["soc_detections"][1]}
        self.assertEqual(detections, running | {"AEG-0001": "high"})
        self.assertEqual([its for _, its, _ in shown["aegis_consumer_lag"][1]], [{"partition": "00-63"}], "one consumer reads them all")

    def test_they_move_with_what_is_detected(self):
        asked = [("soc_detections", "_total", {"rule": "AEG-3002", "severity": "high"}), ("soc_mttd_seconds", "_count", {}),
                 ("aegis_rule_eval_seconds", "_count", {"rule": "AEG-3002"}), ("aegis_rule_eval_seconds", "_sum", {"rule": "AEG-3002"})]
        before = [self.value(family, suffix, **labels) for family, suffix, labels in asked]
        for _ in range(DENIES):
            self.assertEqual(self.agent.authorize(trust="untrusted_external")["decision"], "deny")
        wait_until("the storm is told", lambda: [alert for alert in self.tenant.list("/v1/alerts") if alert["rule_name"] == "deny-storm"])
        wait_until("it is counted", lambda: self.value(*asked[0][:2], **asked[0][2]) == before[0] + 1)
        after = [self.value(family, suffix, **labels) for family, suffix, labels in asked]
        for place, (family, suffix, _) in enumerate(asked[1:], start=1):
            self.assertGreater(after[place], before[place], family + suffix)
        wait_until("nothing is left to take", lambda: self.value("aegis_consumer_lag", "") == 0)
        for family in ("aegis_detect_late", "aegis_detect_malformed", "aegis_detect_verify_failures", "aegis_detect_refused"):
            self.assertEqual(self.value(family, "_total"), 0, family)
        text = self.aegis.get("/metrics").text
        for word in (self.tenant.name, self.agent.id):
            self.assertNotIn(word, text)


# Not shown by a program without a NATS server, or by any but an edge of its own, and of a family with labels, before its first sample.
NOT_YET = {"aegis_nats_connected", "aegis_nats_server_info", "aegis_nats_servers", "aegis_nats_servers_left_total",
           "aegis_decisions_total", "aegis_dry_runs_total", "aegis_callbacks_total"}


class Documented(Story):
    def table(self, name, row):
        text = (REPOSITORY / "docs/operating.md").read_text()
        found = re.findall(row, text[text.index(f"<!-- {name} -->"):text.index(f"<!-- /{name} -->")], re.MULTILINE)
        self.assertEqual(len(found), len(dict(found)), "each stands there once")
        return dict(found)

    def test_every_metric_is_and_no_other(self):
        named = self.table("metrics", r"^\| `(\w+)(\{[^}]*\})?` \|")
        kinds = {name: kind for name, (kind, _) in families(self.aegis.get("/metrics").text).items()}
        shown = {name + ("_total" if kind == "counter" else "") for name, kind in kinds.items()}
        self.assertEqual(shown - set(named), set())
        self.assertLessEqual(set(named) - shown, NOT_YET)
        for name, (_, labels) in OF_DETECTION.items():
            name += "_total" if kinds[name] == "counter" else ""
            self.assertEqual(set(re.findall(r"\w+", named[name])), labels, name)

    def test_every_setting_is_with_its_default_and_no_other(self):
        named = {key: tomllib.loads(f"default = {default}")["default"] for key, default in self.table("settings", r"^\| `([\w.]+)` \| `(.*?)` \|").items()}
        said = self.aegis.cli("up", "--help")
        keys = tomllib.loads(re.search(r"their defaults:\n(.*)^Logs:", said, re.MULTILINE | re.DOTALL)[1])
        sections = {key: value for key, value in keys.items() if isinstance(value, dict)}
        flat = {f"{section}.{key}": value for section, its in sections.items() for key, value in its.items()}
        self.assertEqual(named, flat | {key: value for key, value in keys.items() if key not in sections})
