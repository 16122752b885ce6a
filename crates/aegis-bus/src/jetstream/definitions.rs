//! The streams and buckets as files (`streams/` in the repository), compared with a server and made there. Promises that nothing that a server
//! holds is lost by it unless the caller has named the stream.

use std::collections::BTreeMap;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{Context, ErrorCode};
use serde_json::{Map, Value};

use super::{Feature, JetStreamBus, Servers, unavailable};
use crate::BusError;

/// One file for each stream; a bucket is the stream `KV_<bucket>`.
const FILES: [(&str, &str); 10] = [
    ("ASE", include_str!("../../../../streams/ASE.json")),
    ("APPROVALS", include_str!("../../../../streams/APPROVALS.json")),
    ("ALERTS", include_str!("../../../../streams/ALERTS.json")),
    ("EPISODES", include_str!("../../../../streams/EPISODES.json")),
    ("CKPT", include_str!("../../../../streams/CKPT.json")),
    ("DLQ", include_str!("../../../../streams/DLQ.json")),
    ("KV_containment", include_str!("../../../../streams/KV_containment.json")),
    ("KV_control", include_str!("../../../../streams/KV_control.json")),
    ("KV_leases", include_str!("../../../../streams/KV_leases.json")),
    ("KV_trust", include_str!("../../../../streams/KV_trust.json")),
];

/// What an operator changes about the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Copies of each stream in a cluster, 1 to 5.
    pub replicas: Option<usize>,
    /// Bytes that a stream may take, by its name.
    pub max_bytes: BTreeMap<String, u64>,
    /// Seconds that a stream keeps a message, by its name; 0: for ever.
    pub max_age_s: BTreeMap<String, u64>,
}

/// A stream as it should be: the fields that its file, or a setting, gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: String,
    fields: Map<String, Value>,
}

/// A field that the server has otherwise.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    pub field: String,
    pub server: Value,
    pub wanted: Value,
    /// What making it so would lose, if anything.
    pub loses: Option<String>,
}

/// What is to be done about a stream.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    Create,
    Update { differences: Vec<Difference> },
    None,
}

/// The plan for one stream.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Planned {
    pub name: String,
    #[serde(flatten)]
    pub change: Change,
}

impl Planned {
    /// What it would lose.
    #[must_use]
    pub fn losses(&self) -> Vec<&str> {
        match &self.change {
            Change::Update { differences } => differences.iter().filter_map(|difference| difference.loses.as_deref()).collect(),
            Change::Create | Change::None => Vec::new(),
        }
    }
}

/// The shipped definitions under an operator's settings.
pub fn wanted(settings: &Settings) -> Result<Vec<Definition>, BusError> {
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    for name in settings.max_bytes.keys().chain(settings.max_age_s.keys()) {
        if !names.contains(&name.as_str()) {
            return Err(BusError::invalid("stream", format!("there is no stream {name}; the streams are {}", names.join(", "))));
        }
    }
    if settings.replicas.is_some_and(|replicas| !(1..=5).contains(&replicas)) {
        return Err(BusError::invalid("replicas", "1 to 5"));
    }
    FILES.iter().map(|(name, text)| definition(name, text, settings)).collect()
}

fn definition(name: &str, text: &str, settings: &Settings) -> Result<Definition, BusError> {
    let mut fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| BusError::invalid("stream file", format!("{name}: {error}")))?;
    if let Some(replicas) = settings.replicas {
        fields.insert("num_replicas".to_owned(), replicas.into());
    }
    if let Some(bytes) = settings.max_bytes.get(name) {
        fields.insert("max_bytes".to_owned(), (*bytes).into());
    }
    if let Some(seconds) = settings.max_age_s.get(name) {
        let age = seconds.saturating_mul(1_000_000_000);
        fields.insert("max_age".to_owned(), age.into());
        // No server remembers ids for longer than it keeps messages.
        if age > 0 && fields.get("duplicate_window").and_then(Value::as_u64).is_some_and(|window| window > age) {
            fields.insert("duplicate_window".to_owned(), age.into());
        }
    }
    let definition = Definition { name: name.to_owned(), fields };
    definition.over(&Map::new())?;
    Ok(definition)
}

impl Definition {
    /// The configuration with these fields, and the server's where the file says nothing.
    fn over(&self, server: &Map<String, Value>) -> Result<Config, BusError> {
        let mut fields = server.clone();
        fields.extend(self.fields.clone());
        serde_json::from_value(Value::Object(fields))
            .map_err(|error| BusError::invalid("stream file", format!("{}: {error}", self.name)))
    }

    /// Without the fields that not all servers know: a stream may come to lie on any of them.
    fn known_to(&self, servers: &Servers) -> Self {
        let is_known = |field: &str| LATER.iter().all(|(later, feature)| *later != field || servers.have(*feature));
        let mut fields = self.fields.clone();
        fields.retain(|field, _| is_known(field));
        Self { name: self.name.clone(), fields }
    }

    fn differences(&self, server: &Map<String, Value>, bytes: u64, messages: u64) -> Vec<Difference> {
        let differs = self.fields.iter().filter(|(field, wanted)| !same(server.get(*field), wanted));
        let difference = |(field, wanted): (&String, &Value)| {
            let on_server = server.get(field).cloned().unwrap_or(Value::Null);
            let loses = (messages > 0).then(|| loses(field, &on_server, wanted, bytes, messages)).flatten();
            Difference { field: field.clone(), server: on_server, wanted: wanted.clone(), loses }
        };
        differs.map(difference).collect()
    }
}

/// A field that is left out has the value that means nothing.
fn same(server: Option<&Value>, wanted: &Value) -> bool {
    match server {
        Some(server) => server == wanted,
        None => matches!(wanted, Value::Null | Value::Bool(false)) || wanted.as_u64() == Some(0),
    }
}

/// -1 and 0 are no bound.
fn tighter(server: &Value, wanted: &Value) -> bool {
    let bound = |value: &Value| value.as_i64().filter(|bound| *bound > 0).unwrap_or(i64::MAX);
    bound(wanted) < bound(server)
}

fn loses(field: &str, server: &Value, wanted: &Value, bytes: u64, messages: u64) -> Option<String> {
    let over = |held: u64| wanted.as_u64().is_some_and(|bound| bound > 0 && held > bound);
    match field {
        "max_bytes" if over(bytes) => Some(format!("the oldest of {bytes} bytes")),
        "max_msgs" if over(messages) => Some(format!("the oldest of {messages} messages")),
        "max_age" | "max_msgs_per_subject" if tighter(server, wanted) => Some("messages over the new bound".to_owned()),
        "subjects" => {
            let kept: Vec<&Value> = wanted.as_array().into_iter().flatten().collect();
            let gone = server.as_array().into_iter().flatten().filter(|subject| !kept.contains(subject));
            let gone: Vec<String> = gone.map(ToString::to_string).collect();
            (!gone.is_empty()).then(|| format!("what is published to {}", gone.join(", ")))
        }
        "storage" | "retention" => Some(format!("all {messages} messages: the stream must be made anew")),
        "discard" if *wanted == "old" => Some("the oldest messages whenever it is full".to_owned()),
        _ => None,
    }
}

/// Fields that servers know since they have this.
const LATER: [(&str, Feature); 1] = [("allow_msg_ttl", Feature::MessageTtl)];

/// Fields that no server changes on a stream that is there.
const FIXED: [&str; 2] = ["storage", "retention"];

impl JetStreamBus {
    /// What would have to change on the server. Fields that not all servers of the cluster know are left out.
    pub async fn plan_streams(&self, wanted: &[Definition]) -> Result<Vec<Planned>, BusError> {
        self.plan(&self.known_to_all(wanted).await?).await
    }

    async fn known_to_all(&self, wanted: &[Definition]) -> Result<Vec<Definition>, BusError> {
        let servers = self.find_servers().await?;
        Ok(wanted.iter().map(|definition| definition.known_to(&servers)).collect())
    }

    async fn plan(&self, wanted: &[Definition]) -> Result<Vec<Planned>, BusError> {
        let mut plan = Vec::with_capacity(wanted.len());
        for definition in wanted {
            let change = match on_server(&self.context, &definition.name).await? {
                None => Change::Create,
                Some((fields, bytes, messages)) => match definition.differences(&fields, bytes, messages) {
                    differences if differences.is_empty() => Change::None,
                    differences => Change::Update { differences },
                },
            };
            plan.push(Planned { name: definition.name.clone(), change });
        }
        Ok(plan)
    }

    /// Makes the server's streams as they should be, and answers what was done. Nothing is done if something would be lost of a stream that
    /// is not in `may_lose`.
    pub async fn apply_streams(&self, wanted: &[Definition], may_lose: &[String]) -> Result<Vec<Planned>, BusError> {
        let wanted = self.known_to_all(wanted).await?;
        let plan = self.plan(&wanted).await?;
        for planned in &plan {
            let losses = planned.losses();
            if !losses.is_empty() && !may_lose.contains(&planned.name) {
                let reason =
                    format!("{} would lose {}; name it with --may-lose {0} if it shall", planned.name, losses.join(" and "));
                return Err(BusError::invalid("change", reason));
            }
        }
        for (planned, definition) in plan.iter().zip(&wanted) {
            self.make(planned, definition).await.map_err(|error| unavailable(format!("{}: {error}", planned.name)))?;
        }
        Ok(plan)
    }

    async fn make(&self, planned: &Planned, definition: &Definition) -> Result<(), BusError> {
        let Change::Update { differences } = &planned.change else {
            if planned.change == Change::Create {
                self.context.create_stream(definition.over(&Map::new())?).await.map_err(unavailable)?;
            }
            return Ok(());
        };
        if differences.iter().any(|difference| FIXED.contains(&difference.field.as_str())) {
            self.context.delete_stream(&definition.name).await.map_err(unavailable)?;
            self.context.create_stream(definition.over(&Map::new())?).await.map_err(unavailable)?;
            return Ok(());
        }
        let fields = on_server(&self.context, &definition.name).await?.map(|(fields, ..)| fields).unwrap_or_default();
        self.context.update_stream(definition.over(&fields)?).await.map_err(unavailable)?;
        Ok(())
    }
}

/// A stream's configuration as the server has it, its bytes and its messages; None if there is none.
async fn on_server(context: &Context, name: &str) -> Result<Option<(Map<String, Value>, u64, u64)>, BusError> {
    let stream = match context.get_stream(name).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(unavailable(error)),
            };
        }
    };
    let info = stream.cached_info();
    let Value::Object(fields) = serde_json::to_value(&info.config).map_err(unavailable)? else { return Ok(None) };
    Ok(Some((fields, info.state.bytes, info.state.messages)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Version;

    #[test]
    fn what_a_change_loses_is_named_and_an_empty_stream_loses_nothing() {
        const BYTES: u64 = 700;
        const MESSAGES: u64 = 7;
        let over_the_bound = Some("messages over the new bound");
        let made_anew = Some("all 7 messages: the stream must be made anew");
        let table = [
            ("max_bytes", json!(1000), json!(699), Some("the oldest of 700 bytes")),
            ("max_bytes", json!(1000), json!(700), None),
            ("max_bytes", json!(-1), json!(699), Some("the oldest of 700 bytes")),
            ("max_bytes", json!(1000), json!(-1), None),
            ("max_msgs", json!(-1), json!(6), Some("the oldest of 7 messages")),
            ("max_msgs", json!(100), json!(7), None),
            ("max_msgs", json!(100), json!(-1), None),
            ("max_age", json!(0), json!(1), over_the_bound),
            ("max_age", json!(10), json!(9), over_the_bound),
            ("max_age", json!(10), json!(11), None),
            ("max_age", json!(10), json!(0), None),
            ("max_msgs_per_subject", json!(-1), json!(1), over_the_bound),
            ("max_msgs_per_subject", json!(5), json!(4), over_the_bound),
            ("max_msgs_per_subject", json!(5), json!(6), None),
            ("max_msgs_per_subject", json!(5), json!(-1), None),
            ("subjects", json!(["a.>", "b.>"]), json!(["a.>"]), Some("what is published to \"b.>\"")),
            ("subjects", json!(["a.>", "b.>"]), json!(["c.>"]), Some("what is published to \"a.>\", \"b.>\"")),
            ("subjects", json!(["a.>", "b.>"]), json!(["b.>", "c.>", "a.>"]), None),
            ("storage", json!("memory"), json!("file"), made_anew),
            ("retention", json!("interest"), json!("limits"), made_anew),
            ("discard", json!("new"), json!("old"), Some("the oldest messages whenever it is full")),
            ("discard", json!("old"), json!("new"), None),
            ("num_replicas", json!(3), json!(1), None),
            ("duplicate_window", json!(10), json!(9), None),
        ];
        let one = |field: &str, value: &Value| Map::from_iter([(field.to_owned(), value.clone())]);
        for (field, on_server, wanted, loses) in table {
            let definition = Definition { name: "ASE".to_owned(), fields: one(field, &wanted) };
            let server = one(field, &on_server);
            let told = |messages| {
                let differences = definition.differences(&server, BYTES, messages);
                assert_eq!(differences.len(), 1, "{field}: {on_server} -> {wanted}");
                Planned { name: "ASE".to_owned(), change: Change::Update { differences } }
            };
            assert_eq!(told(MESSAGES).losses(), Vec::from_iter(loses), "{field}: {on_server} -> {wanted}");
            assert_eq!(told(0).losses(), Vec::<&str>::new(), "{field}: {on_server} -> {wanted} of an empty stream");
            assert!(definition.differences(&one(field, &wanted), BYTES, MESSAGES).is_empty(), "{field} as it should be");
        }
    }

    #[test]
    fn what_one_of_the_servers_does_not_know_is_not_asked_of_them() {
        let wanted = wanted(&Settings::default()).unwrap();
        let version = Version { major: 2, minor: 9, patch: 10 };
        let old = Servers { version, newest: version, api_level: None, count: 1, features: Vec::new() };
        let current = Servers { features: vec![Feature::MessageTtl], ..old.clone() };
        let later = |servers: &Servers| -> Vec<String> {
            let known = wanted.iter().map(|definition| definition.known_to(servers));
            known.filter(|definition| definition.fields.contains_key("allow_msg_ttl")).map(|definition| definition.name).collect()
        };
        assert!(later(&old).is_empty());
        assert_eq!(later(&current), ["APPROVALS"]);
        for (known, definition) in wanted.iter().map(|definition| definition.known_to(&old)).zip(&wanted) {
            let left_out = definition.fields.len() - known.fields.len();
            assert_eq!(left_out, usize::from(definition.name == "APPROVALS"), "{}", definition.name);
        }
    }
}
