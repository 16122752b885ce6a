//! The NATS server's users as a file (`streams/users.json`): one for each edge and each role, with what it may publish and hear, rendered as the
//! server's configuration. Each edge has an account of its own, and reaches the streams through what it imports: within one account, a user that
//! may publish to a stream can have the server's acknowledgement written to any subject, by naming that as where to answer. Promises that nothing
//! but names of the right form reaches that text.

use std::collections::BTreeSet;

use aegis_model::{TenantId, partition_of};
use serde::Deserialize;

use crate::BusError;

/// What a user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Makes the streams.
    Admin,
    /// The control plane, and what runs in its process.
    Control,
    /// An edge, and the tenants that it serves.
    Edge { id: String, tenants: BTreeSet<TenantId> },
}

impl Role {
    /// What the user is called.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Admin => "admin",
            Self::Control => "control",
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
    edge: Rights,
    /// What edges publish, as the account of the streams takes it.
    from_edges: Vec<String>,
    /// What they can hear of it.
    to_edges: Vec<String>,
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
    let (mut ids, mut slot) = (BTreeSet::new(), 0);
    for user in users {
        check(user)?;
        if !ids.insert(user.role.id()) {
            return Err(BusError::invalid("user", format!("there are two of {}", user.role.id())));
        }
        match &user.role {
            Role::Admin => inside.push_str(&user_block(user, &file.admin, &allowed(user, &file.admin))),
            Role::Control => inside.push_str(&user_block(user, &file.control, &allowed(user, &file.control))),
            Role::Edge { .. } => {
                edges.push_str(&edge_account(slot, user, &file.edge));
                slot += 1;
            }
        }
    }
    for spare in slot..slot + SPARE {
        let unused = format!("hb.spare-{spare}");
        let import = lines([&unused], |subject| format!("{{ service: {{ account: AEGIS, subject: \"{subject}\" }} }}"));
        edges.push_str(&format!("  EDGE_{spare} {{\n    imports = [\n{import}    ]\n  }}\n"));
    }
    let exports = lines(&file.from_edges, |subject| format!("{{ service: \"{subject}\" }}"))
        + &lines(&file.to_edges, |subject| format!("{{ stream: \"{subject}\" }}"));
    Ok(format!(
        "# Written by `aegis streams users`. Include it in the server's configuration, and reload the server when it changes.\n\
         accounts {{\n  AEGIS {{\n    jetstream: enabled\n    users = [\n{inside}    ]\n    exports = [\n{exports}    ]\n  }}\n{edges}}}\n"
    ))
}

/// The account of an edge: it imports what its user may publish and hear.
fn edge_account(slot: usize, user: &User, rights: &Rights) -> String {
    let allowed = allowed(user, rights);
    let inbox = format!("{}.>", user.role.inbox_prefix());
    let imports = lines(&allowed.publish, |subject| format!("{{ service: {{ account: AEGIS, subject: \"{subject}\" }} }}"))
        + &lines(allowed.subscribe.iter().filter(|subject| **subject != inbox), |subject| {
            format!("{{ stream: {{ account: AEGIS, subject: \"{subject}\" }} }}")
        });
    let user_block = user_block(user, rights, &allowed);
    format!("  EDGE_{slot} {{\n    users = [\n{user_block}    ]\n    imports = [\n{imports}    ]\n  }}\n")
}

fn lines<'a>(subjects: impl IntoIterator<Item = &'a String>, form: impl Fn(&str) -> String) -> String {
    subjects.into_iter().map(|subject| format!("      {}\n", form(subject))).collect()
}

/// What a user may do.
struct Allowed {
    publish: BTreeSet<String>,
    subscribe: BTreeSet<String>,
}

fn allowed(user: &User, rights: &Rights) -> Allowed {
    let own = |template: &String| template.replace("{id}", user.role.id()).replace("{inbox}", &user.role.inbox_prefix());
    let mut publish: BTreeSet<String> = rights.publish.iter().map(own).collect();
    let mut subscribe: BTreeSet<String> = rights.subscribe.iter().map(own).collect();
    if let Role::Edge { tenants, .. } = &user.role {
        for tenant in tenants {
            let partition = format!("{:02}", partition_of(tenant));
            let of_tenant = |template: &String| template.replace("{tenant}", tenant.as_str()).replace("{pp}", &partition);
            publish.extend(rights.publish_for_each_tenant.iter().map(of_tenant));
            subscribe.extend(rights.subscribe_for_each_tenant.iter().map(of_tenant));
        }
    }
    Allowed { publish, subscribe }
}

fn check(user: &User) -> Result<(), BusError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let id = user.role.id();
    let is_reserved = matches!(&user.role, Role::Edge { id, .. } if id == "admin" || id == "control");
    if id.is_empty() || id.len() > 64 || !id.bytes().all(plain) || is_reserved {
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

fn user_block(user: &User, rights: &Rights, allowed: &Allowed) -> String {
    let list = |subjects: &BTreeSet<String>| {
        let quoted: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
        quoted.join(", ")
    };
    format!(
        "      # {}: {}\n      {{ nkey: {}, permissions: {{\n        publish: {{ allow: [{}] }}\n        subscribe: {{ allow: [{}] }}\n      }} }}\n",
        user.role.id(),
        rights.description,
        user.nkey,
        list(&allowed.publish),
        list(&allowed.subscribe),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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

    #[test]
    fn what_has_not_the_form_of_a_name_reaches_no_configuration() {
        let good = format!("U{}", "A".repeat(55));
        for id in ["", "a b", "a\"b", "a.b", "admin", "control", "A", &"x".repeat(65)] {
            render(&[edge(id, &good)]).unwrap_err();
        }
        for nkey in ["", "UAAA", &format!("S{}", "A".repeat(55)), &format!("U{}\"", "A".repeat(54))] {
            render(&[edge("edge-1", nkey)]).unwrap_err();
        }
        render(&[edge("edge-1", &good), edge("edge-1", &good)]).unwrap_err();
    }
}
