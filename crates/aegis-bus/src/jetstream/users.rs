//! The NATS server's users as a file (`streams/users.json`): one for each edge and each role, with what it may publish and hear, rendered as the
//! server's configuration. Each edge, and ingest, has an account of its own, and reaches the streams through what it imports: within one account, a
//! user that may publish to a stream can have the server's acknowledgement written to any subject, by naming that as where to answer. Promises that
//! nothing but names of the right form reaches that text.

use std::collections::BTreeSet;

use aegis_model::{TenantId, partition_of};
use serde::Deserialize;

use crate::BusError;

/// What runs behind the edges beside control, each with a user of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Detect,
    Respond,
    History,
    Ingest,
    Lake,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 5] = [Self::Detect, Self::Respond, Self::History, Self::Ingest, Self::Lake];

    /// Its name in files, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Respond => "respond",
            Self::History => "history",
            Self::Ingest => "ingest",
            Self::Lake => "lake",
        }
    }

    /// What its user is called: no edge can have a name with a dot.
    #[must_use]
    pub const fn user(self) -> &'static str {
        match self {
            Self::Detect => "soc.detect",
            Self::Respond => "soc.respond",
            Self::History => "soc.history",
            Self::Ingest => "soc.ingest",
            Self::Lake => "soc.lake",
        }
    }
}

/// What a user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Makes the streams.
    Admin,
    /// The control plane alone.
    Control,
    /// The control plane, and every part under the same user.
    Whole,
    /// A part by itself.
    Part(Part),
    /// An edge, and the tenants that it serves.
    Edge { id: String, tenants: BTreeSet<TenantId> },
}

impl Role {
    /// What the user is called.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Admin => "admin",
            Self::Control | Self::Whole => "control",
            Self::Part(part) => part.user(),
            Self::Edge { id, .. } => id,
        }
    }

    /// First token of the subjects where its answers come in: nobody else can hear there.
    #[must_use]
    pub fn inbox_prefix(&self) -> String {
        inbox_prefix(self.id())
    }
}

/// The same, by what the user is called.
#[must_use]
pub fn inbox_prefix(id: &str) -> String {
    format!("_INBOX_{id}")
}

/// One user of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub role: Role,
    /// The public half of its login (`U...`).
    pub nkey: String,
}

/// What a user may do; `{id}`, `{inbox}`, `{tenant}` and `{pp}` stand for its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rights {
    description: String,
    publish: Vec<String>,
    /// Streams that it reads.
    #[serde(default)]
    reads: Vec<String>,
    #[serde(default)]
    publish_for_each_tenant: Vec<String>,
    subscribe: Vec<String>,
    #[serde(default)]
    subscribe_for_each_tenant: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    admin: Rights,
    control: Rights,
    detect: Rights,
    respond: Rights,
    history: Rights,
    ingest: Rights,
    lake: Rights,
    edge: Rights,
    /// What is asked of the server to read a `{stream}`.
    reading: Vec<String>,
    /// What edges publish, as the account of the streams takes it.
    from_edges: Vec<String>,
    /// What they can hear of it.
    to_edges: Vec<String>,
}

impl File {
    fn of_part(&self, part: Part) -> &Rights {
        match part {
            Part::Detect => &self.detect,
            Part::Respond => &self.respond,
            Part::History => &self.history,
            Part::Ingest => &self.ingest,
            Part::Lake => &self.lake,
        }
    }

    fn of(&self, role: &Role) -> Vec<&Rights> {
        match role {
            Role::Admin => vec![&self.admin],
            Role::Control => vec![&self.control],
            Role::Whole => Part::ALL.iter().map(|part| self.of_part(*part)).chain([&self.control]).collect(),
            Role::Part(part) => vec![self.of_part(*part)],
            Role::Edge { .. } => vec![&self.edge],
        }
    }
}

const FILE: &str = include_str!("../../../../streams/users.json");

/// Accounts without a user. A server wires the imports of an account that a reload has brought only at the next one, so that an edge gets one
/// which was there before.
const SPARE: usize = 8;

/// The users as a block `accounts` of the server's configuration, to be included there. Edges in the order in which they enrolled first: each
/// keeps its account.
pub fn render(users: &[User]) -> Result<String, BusError> {
    let file: File =
        serde_json::from_str(FILE).map_err(|error| BusError::invalid("users file", format!("streams/users.json: {error}")))?;
    let (mut inside, mut edges) = (String::new(), String::new());
    let (mut ids, mut slot, mut ingest) = (BTreeSet::new(), 0, None);
    for user in users {
        check(user)?;
        if !ids.insert(user.role.id()) {
            return Err(BusError::invalid("user", format!("there are two of {}", user.role.id())));
        }
        let allowed = Allowed::of(&user.role, &file);
        let block = user_block(user, &allowed);
        match &user.role {
            Role::Edge { .. } => {
                edges.push_str(&far_account(&format!("EDGE_{slot}"), &block, &allowed));
                slot += 1;
            }
            Role::Part(Part::Ingest) => ingest = Some(block),
            Role::Admin | Role::Control | Role::Whole | Role::Part(_) => inside.push_str(&block),
        }
    }
    // There before it has a user, too: what an account imports is wired by then.
    let of_ingest = Allowed::of(&Role::Part(Part::Ingest), &file);
    let ingest = far_account("INGEST", &ingest.unwrap_or_default(), &of_ingest);
    for spare in slot..slot + SPARE {
        let unused = format!("hb.spare-{spare}");
        let import = lines([&unused], |subject| format!("{{ service: {{ account: AEGIS, subject: \"{subject}\" }} }}"));
        edges.push_str(&format!("  EDGE_{spare} {{\n    imports = [\n{import}    ]\n  }}\n"));
    }
    let exports = lines(&file.from_edges, |subject| format!("{{ service: \"{subject}\" }}"))
        + &lines(&file.to_edges, |subject| format!("{{ stream: \"{subject}\" }}"));
    Ok(format!(
        "# Written by `aegis streams users`. Include it in the server's configuration, and reload the server when it changes.\n\
         accounts {{\n  AEGIS {{\n    jetstream: enabled\n    users = [\n{inside}    ]\n    exports = [\n{exports}    ]\n  }}\n{ingest}{edges}}}\n"
    ))
}

/// An account beside that of the streams: it imports what its user may publish and hear.
fn far_account(name: &str, user_block: &str, allowed: &Allowed) -> String {
    let imports = lines(&allowed.publish, |subject| format!("{{ service: {{ account: AEGIS, subject: \"{subject}\" }} }}"))
        + &lines(allowed.subscribe.iter().filter(|subject| **subject != allowed.inbox), |subject| {
            format!("{{ stream: {{ account: AEGIS, subject: \"{subject}\" }} }}")
        });
    format!("  {name} {{\n    users = [\n{user_block}    ]\n    imports = [\n{imports}    ]\n  }}\n")
}

fn lines<'a>(subjects: impl IntoIterator<Item = &'a String>, form: impl Fn(&str) -> String) -> String {
    subjects.into_iter().map(|subject| format!("      {}\n", form(subject))).collect()
}

/// What a user may do.
struct Allowed {
    description: String,
    publish: BTreeSet<String>,
    subscribe: BTreeSet<String>,
    /// Where its answers come in, which is its own and no import.
    inbox: String,
}

impl Allowed {
    fn of(role: &Role, file: &File) -> Self {
        let all = file.of(role);
        let description = match role {
            Role::Whole => {
                "The control plane, with detection, response, history, ingest and the lake under the same user".to_owned()
            }
            _ => all.iter().map(|rights| rights.description.as_str()).collect(),
        };
        let own = |template: &String| template.replace("{id}", role.id()).replace("{inbox}", &role.inbox_prefix());
        let mut allowed = Self {
            description,
            publish: all.iter().flat_map(|rights| &rights.publish).map(own).collect(),
            subscribe: all.iter().flat_map(|rights| &rights.subscribe).map(own).collect(),
            inbox: format!("{}.>", role.inbox_prefix()),
        };
        for stream in all.iter().flat_map(|rights| &rights.reads) {
            allowed.publish.extend(file.reading.iter().map(|template| template.replace("{stream}", stream)));
        }
        if let Role::Edge { tenants, .. } = role {
            for tenant in tenants {
                let partition = format!("{:02}", partition_of(tenant));
                let of_tenant = |template: &String| template.replace("{tenant}", tenant.as_str()).replace("{pp}", &partition);
                allowed.publish.extend(file.edge.publish_for_each_tenant.iter().map(of_tenant));
                allowed.subscribe.extend(file.edge.subscribe_for_each_tenant.iter().map(of_tenant));
            }
        }
        allowed
    }
}

fn check(user: &User) -> Result<(), BusError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let id = user.role.id();
    let is_edge = matches!(user.role, Role::Edge { .. });
    let is_reserved = id == "admin" || id == "control";
    if is_edge && (id.is_empty() || id.len() > 64 || !id.bytes().all(plain) || is_reserved) {
        return Err(BusError::invalid("user", format!("`{id}` must match [a-z0-9_-]{{1,64}} and be no role's")));
    }
    let is_nkey = user.nkey.len() == 56
        && user.nkey.starts_with('U')
        && user.nkey.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b));
    if !is_nkey {
        return Err(BusError::invalid("user", format!("{id} has no public nkey (U and 55 letters and digits)")));
    }
    Ok(())
}

fn user_block(user: &User, allowed: &Allowed) -> String {
    let list = |subjects: &BTreeSet<String>| {
        let quoted: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
        quoted.join(", ")
    };
    format!(
        "      # {}: {}\n      {{ nkey: {}, permissions: {{\n        publish: {{ allow: [{}] }}\n        subscribe: {{ allow: [{}] }}\n      }} }}\n",
        user.role.id(),
        allowed.description,
        user.nkey,
        list(&allowed.publish),
        list(&allowed.subscribe),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::EventKind;

    use super::*;
    use crate::subject;

    fn edge(id: &str, nkey: &str) -> User {
        let tenants = [TenantId::new("acme").unwrap()].into();
        User { role: Role::Edge { id: id.to_owned(), tenants }, nkey: nkey.to_owned() }
    }

    #[test]
    fn an_edge_s_subjects_are_its_own() {
        let text = render(&[edge("edge-1", &format!("U{}", "A".repeat(55)))]).unwrap();
        let edges = &text[text.find("EDGE_0").unwrap()..];
        let rights: Vec<&str> = edges.lines().filter(|line| line.contains("allow: [")).collect();
        assert_eq!(rights.len(), 2, "{text}");
        for subject in rights.iter().flat_map(|line| line.split('"').skip(1).step_by(2)) {
            let is_its_own = ["acme", "edge-1"].iter().any(|own| subject.split(['.', '_']).any(|token| token.contains(own)));
            assert!(is_its_own || subject.starts_with("dlq.") || subject == "$KV.control.beat", "{subject} is everybody's");
            assert!(!subject.contains(['{', '}']), "{subject}");
        }
    }

    /// What a role may publish, as it stands in the file.
    fn publishes(role: Role) -> BTreeSet<String> {
        let text = render(&[User { role, nkey: format!("U{}", "A".repeat(55)) }]).unwrap();
        let line = text.lines().find(|line| line.trim_start().starts_with("publish: { allow: [")).unwrap();
        line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn what_writes_the_feed_reads_approvals_or_makes_room_is_control_s_alone() {
        let feed = ["$KV.control.beat", "$KV.containment.acme.agent.x", "$KV.trust.acme.x", "approval.acme.1", "_R_.x"];
        let api = ["STREAM.INFO.APPROVALS", "STREAM.MSG.GET.APPROVALS", "CONSUMER.CREATE.APPROVALS.x", "STREAM.PURGE.ASE"];
        let control_s = feed.into_iter().map(str::to_owned).chain(api.map(|request| format!("$JS.API.{request}")));
        let may = |role: Role, subject: &str| publishes(role).iter().any(|allowed| subject::matches(allowed, subject));
        for subject in control_s {
            assert!(may(Role::Control, &subject), "{subject}");
            for part in Part::ALL {
                assert!(!may(Role::Part(part), &subject), "{} may publish {subject}", part.as_str());
            }
        }
        let whole = publishes(Role::Whole);
        assert!(whole.iter().all(|subject| !subject.contains(['{', '}'])), "{whole:?}");
    }

    #[test]
    fn a_stream_is_made_anew_by_whoever_makes_streams_alone() {
        let may = |role: Role| publishes(role).iter().any(|allowed| subject::matches(allowed, "$JS.API.STREAM.DELETE.ASE"));
        assert!(may(Role::Admin));
        for role in Part::ALL.into_iter().map(Role::Part).chain([Role::Control, Role::Whole]) {
            assert!(!may(role.clone()), "{role:?}");
        }
    }

    #[test]
    fn one_user_for_all_may_what_each_may_and_nothing_else() {
        let all: BTreeSet<String> = Part::ALL.into_iter().map(Role::Part).chain([Role::Control]).flat_map(publishes).collect();
        assert_eq!(publishes(Role::Whole), all);
    }

    #[test]
    fn ingest_writes_every_kind_of_observation_and_nothing_else() {
        let kinds = EventKind::WORDS.iter().map(|word| word.parse::<EventKind>().unwrap()).filter(|kind| kind.is_external());
        let all: BTreeSet<String> = kinds.map(|kind| format!("ase.*.*.{}", kind.subject_token())).collect();
        assert_eq!(publishes(Role::Part(Part::Ingest)), all);
    }

    #[test]
    fn what_has_not_the_form_of_a_name_reaches_no_configuration() {
        let good = format!("U{}", "A".repeat(55));
        for id in ["", "a b", "a\"b", "a.b", "soc.detect", "admin", "control", "A", &"x".repeat(65)] {
            render(&[edge(id, &good)]).unwrap_err();
        }
        for nkey in ["", "UAAA", &format!("S{}", "A".repeat(55)), &format!("U{}\"", "A".repeat(54))] {
            render(&[edge("edge-1", nkey)]).unwrap_err();
        }
        render(&[edge("edge-1", &good), edge("edge-1", &good)]).unwrap_err();
    }
}
