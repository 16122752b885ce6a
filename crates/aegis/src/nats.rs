//! How a process is told of its NATS server: on the command line, or in the section `[nats]` of the configuration.

use std::path::{Path, PathBuf};

use aegis_bus::{JetStreamOptions, Login};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::parts::read_private;

/// `[nats]`, and the options of the same meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NatsSection {
    /// Servers of one cluster, separated by commas; empty: the bus is a file in the data folder.
    pub(crate) servers: String,
    /// A file with the seed of this process's nkey (`SU...`), readable by its owner only; empty: no login.
    pub(crate) nkey_file: PathBuf,
    /// Certificates to trust (PEM); empty: those of the machine.
    pub(crate) ca_file: PathBuf,
    /// This process's own certificate (PEM), for servers that ask for one; with `key_file`.
    pub(crate) certificate_file: PathBuf,
    /// The certificate's key (PEM).
    pub(crate) key_file: PathBuf,
    /// Refuse to talk without TLS.
    pub(crate) require_tls: bool,
    /// Begin with TLS, for servers that wait for it before they say anything.
    pub(crate) tls_first: bool,
    /// First token of the subjects where answers come in; empty: `_INBOX`, or with a login of its own `_INBOX_` and the user's name.
    pub(crate) inbox_prefix: String,
    /// A folder with the seeds of the nkeys of what runs beside control in its process, each readable by its owner only: `nats-detect.nk`, and so
    /// for `respond`, `history`, `ingest` and `lake`; empty: the data folder's, if it has them, else all are control's user.
    pub(crate) role_nkeys: PathBuf,
    /// Where control writes the server's users whenever an edge has enrolled, for the server's configuration to include; empty: nowhere.
    pub(crate) users_file: PathBuf,
}

/// The server of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct NatsArgs {
    /// A NATS server, nats://host:port or tls://host:port; several of one cluster with commas
    #[arg(long = "nats", value_name = "URL")]
    servers: Option<String>,
    /// A file with the seed of the nkey to log in with
    #[arg(long, value_name = "FILE")]
    nkey: Option<PathBuf>,
    /// Certificates to trust (PEM) instead of the machine's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// This side's own certificate (PEM), for servers that ask for one; with --tls-key
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Begin with TLS, for servers that wait for it before they say anything (`handshake_first`)
    #[arg(long)]
    tls_first: bool,
    /// First token of the subjects where answers come in, where the server keeps them private
    #[arg(long, value_name = "TOKEN")]
    inbox_prefix: Option<String>,
}

impl NatsArgs {
    /// Puts what was given on the command line over the configuration.
    pub(crate) fn over(self, section: &mut NatsSection) {
        let Self { servers, nkey, ca, tls_certificate, tls_key, tls_first, inbox_prefix } = self;
        section.tls_first |= tls_first;
        section.certificate_file = tls_certificate.unwrap_or(std::mem::take(&mut section.certificate_file));
        section.key_file = tls_key.unwrap_or(std::mem::take(&mut section.key_file));
        section.servers = servers.unwrap_or(std::mem::take(&mut section.servers));
        section.nkey_file = nkey.unwrap_or(std::mem::take(&mut section.nkey_file));
        section.ca_file = ca.unwrap_or(std::mem::take(&mut section.ca_file));
        section.inbox_prefix = inbox_prefix.unwrap_or(std::mem::take(&mut section.inbox_prefix));
    }

    pub(crate) fn options(&self, name: &str) -> anyhow::Result<JetStreamOptions> {
        let section = NatsSection {
            servers: self.servers.clone().unwrap_or_default(),
            nkey_file: self.nkey.clone().unwrap_or_default(),
            ca_file: self.ca.clone().unwrap_or_default(),
            certificate_file: self.tls_certificate.clone().unwrap_or_default(),
            key_file: self.tls_key.clone().unwrap_or_default(),
            tls_first: self.tls_first,
            inbox_prefix: self.inbox_prefix.clone().unwrap_or_default(),
            ..NatsSection::default()
        };
        section.options(name)
    }
}

impl NatsSection {
    /// Whether a server is named at all.
    pub(crate) fn is_used(&self) -> bool {
        !self.servers.trim().is_empty()
    }

    /// Takes the login at `nkey_file`, and the private inbox that goes with it, where the configuration names none.
    pub(crate) fn log_in_as(&mut self, user: &str, nkey_file: PathBuf) {
        if self.nkey_file.as_os_str().is_empty() {
            self.nkey_file = nkey_file;
        }
        if self.inbox_prefix.is_empty() {
            self.inbox_prefix = aegis_bus::users::inbox_prefix(user);
        }
    }

    /// What the driver needs; secrets are read from their files.
    pub(crate) fn options(&self, name: &str) -> anyhow::Result<JetStreamOptions> {
        let given = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let servers: Vec<String> =
            self.servers.split(',').map(str::trim).filter(|server| !server.is_empty()).map(str::to_owned).collect();
        let login = match given(&self.nkey_file) {
            Some(file) => Login::Nkey { seed: read_seed(&file)? },
            None => Login::Nobody,
        };
        let certificate = match (given(&self.certificate_file), given(&self.key_file)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("nats.certificate_file and nats.key_file belong together: name both"),
        };
        let mut options = JetStreamOptions::new("");
        options.servers = servers;
        options.name = name.to_owned();
        options.login = login;
        options.ca_file = given(&self.ca_file);
        options.certificate = certificate;
        options.require_tls = self.require_tls;
        options.tls_first = self.tls_first;
        if !self.inbox_prefix.is_empty() {
            options.inbox_prefix.clone_from(&self.inbox_prefix);
        }
        Ok(options)
    }
}

/// The login of whoever makes the streams, in control's data folder.
pub(crate) fn admin_nkey_file(data: &Path) -> PathBuf {
    data.join("keys").join("nats-admin.nk")
}

/// The seed, if nobody else can read it.
pub(crate) fn read_seed(file: &Path) -> anyhow::Result<String> {
    let text = read_private(file).context("the nkey seed")?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    seed.map(str::to_owned).with_context(|| format!("the nkey seed {} has no line that begins with SU", file.display()))
}
