//! What an edge was told when it was enrolled, and how it enrols: its keys are made here, and only their public halves leave.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aegis_keys::{SigningKey, VerifyingKey};
use aegis_model::TenantId;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::Client;
use crate::parts::make_private_folder;

const FILE: &str = "edge.json";
/// Longest invitation, bytes.
const MAX_TOKEN: usize = 1024;

/// `edge.json` in the data folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Enrolled {
    pub(crate) edge_id: String,
    pub(crate) tenants: BTreeSet<TenantId>,
    /// Whom it believes: control's public keys, base64.
    pub(crate) control_keys: Vec<String>,
    /// Where control answered.
    pub(crate) control_url: String,
}

/// Where an edge's keys are.
pub(crate) fn receipt_key_file(data: &Path) -> PathBuf {
    data.join("keys").join("edge.key")
}
pub(crate) fn trust_key_file(data: &Path) -> PathBuf {
    data.join("keys").join("trust.key")
}
pub(crate) fn nkey_file(data: &Path) -> PathBuf {
    data.join("keys").join("nats.nk")
}

impl Enrolled {
    /// What stands in the data folder.
    pub(crate) fn load(data: &Path) -> anyhow::Result<Self> {
        let path = data.join(FILE);
        if !path.exists() {
            bail!(
                "{} is no enrolled edge: invite one where control runs (`aegis edge invite --id ID --tenant TENANT`), then here `aegis edge enroll`",
                data.display()
            );
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    pub(crate) fn control_keys(&self) -> anyhow::Result<Vec<VerifyingKey>> {
        let keys = self.control_keys.iter().map(|key| VerifyingKey::from_base64(key).context("a key of control in edge.json"));
        keys.collect()
    }
}

/// Control's answer.
#[derive(Deserialize)]
struct Answer {
    edge_id: String,
    tenants: BTreeSet<TenantId>,
    control_keys: Vec<String>,
    trust_key: String,
}

/// Makes this edge's keys, if it has none, and enrols it at `url`.
pub(crate) async fn enroll(data: &Path, url: &str, token: &str) -> anyhow::Result<Enrolled> {
    if token.is_empty() || token.len() > MAX_TOKEN {
        bail!("standard input must be the invitation that `aegis edge invite` printed");
    }
    if data.join(FILE).exists() {
        bail!("{} is an enrolled edge already; an edge that is to be another one needs a folder of its own", data.display());
    }
    make_private_folder(data)?;
    make_private_folder(&data.join("keys"))?;
    let receipt_key = SigningKey::load_or_create(&receipt_key_file(data))?;
    let nkey = load_or_create_nkey(&nkey_file(data))?;
    let body = json!({"token": token, "receipt_key": receipt_key.verifying_key().to_base64(), "nkey": nkey.public_key()});
    let headers = [("content-type", "application/json")];
    let reply = Client::new(url).send(hyper::Method::POST, "/v1/edges/enroll", &headers, body.to_string().into_bytes()).await?;
    if reply.status != 200 {
        bail!("{url} answered {}: {}", reply.status, reply.json()["error"]["message"].as_str().unwrap_or("no reason given"));
    }
    let answer: Answer =
        serde_json::from_slice(&reply.body).with_context(|| format!("{url} answered something else than an enrolment"))?;
    let enrolled = Enrolled {
        edge_id: answer.edge_id,
        tenants: answer.tenants,
        control_keys: answer.control_keys,
        control_url: url.trim_end_matches('/').to_owned(),
    };
    enrolled.control_keys()?;
    write_private(&trust_key_file(data), answer.trust_key.as_bytes())?;
    crate::parts::write_public_key(&data.join("keys"), "edge.pub", &receipt_key)?;
    // Last: with this file the folder is an enrolled edge.
    write_private(&data.join(FILE), serde_json::to_string_pretty(&enrolled)?.as_bytes())?;
    Ok(enrolled)
}

/// A login of NATS, made where it is missing.
pub(crate) fn load_or_create_nkey(path: &Path) -> anyhow::Result<nkeys::KeyPair> {
    if path.exists() {
        let seed = crate::nats::read_seed(path)?;
        return nkeys::KeyPair::from_seed(&seed).with_context(|| format!("the seed in {}", path.display()));
    }
    let pair = nkeys::KeyPair::new_user();
    let seed = pair.seed().context("an nkey without a seed")?;
    write_private(path, format!("{seed}\n").as_bytes())?;
    Ok(pair)
}

/// A file that only its owner can read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let about = || format!("cannot write {}", path.display());
    let partial = path.with_extension("partial");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).with_context(about)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(about)?;
    std::fs::rename(&partial, path).with_context(about)
}
