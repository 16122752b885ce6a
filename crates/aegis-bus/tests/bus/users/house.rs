//! A server with a user for each role and two edges, its streams made.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::users::{Part, Role, User, inbox_prefix, render};
use aegis_bus::{Bus, JetStreamBus, JetStreamOptions, Login, Message, Stream, definitions};
use aegis_model::TenantId;
use async_nats::{ConnectOptions, Event};
use nkeys::KeyPair;
use tokio::sync::mpsc;

use crate::nats::Server;

pub(crate) fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

pub(crate) struct House {
    pub(crate) server: Server,
    keys: Vec<(String, KeyPair)>,
}

/// The streams with little room each.
pub(crate) fn small() -> definitions::Settings {
    definitions::Settings {
        max_bytes: ["ASE", "APPROVALS", "ALERTS", "EPISODES", "CKPT", "DLQ"]
            .into_iter()
            .chain(["KV_containment", "KV_control", "KV_leases", "KV_trust"])
            .map(|name| (name.to_owned(), 8 << 20))
            .collect(),
        ..definitions::Settings::default()
    }
}

impl House {
    pub(crate) async fn build(binary: &Path) -> Self {
        let parts = Part::ALL.map(Part::user);
        let ids = ["admin", "control", "edge-1", "edge-2"].into_iter().chain(parts);
        let keys: Vec<(String, KeyPair)> = ids.map(|id| (id.to_owned(), KeyPair::new_user())).collect();
        let role = |id: &str| match id {
            "admin" => Role::Admin,
            "control" => Role::Control,
            id => match Part::ALL.into_iter().find(|part| part.user() == id) {
                Some(part) => Role::Part(part),
                None => Role::Edge { id: id.to_owned(), tenants: [tenant(if id == "edge-1" { "acme" } else { "beta" })].into() },
            },
        };
        let users: Vec<User> = keys.iter().map(|(id, key)| User { role: role(id), nkey: key.public_key() }).collect();
        let text = render(&users).unwrap();
        // Whoever watches everything in the account of the streams, for the test alone.
        let watched = text.replacen("users = [\n", "users = [\n      { user: watcher, password: watcher }\n", 1);
        let house = Self { server: Server::start_with(binary, &watched), keys };
        let admin = JetStreamBus::connect(&house.options("admin")).await.unwrap();
        let small = small();
        admin.apply_streams(&definitions::wanted(&small).unwrap(), &[]).await.unwrap();
        assert!(admin.plan_streams(&definitions::wanted(&small).unwrap()).await.is_ok());
        house
    }

    fn seed(&self, id: &str) -> String {
        self.keys.iter().find(|(of, _)| of == id).unwrap().1.seed().unwrap()
    }

    pub(crate) fn options(&self, id: &str) -> JetStreamOptions {
        JetStreamOptions {
            login: Login::Nkey { seed: self.seed(id) },
            inbox_prefix: inbox_prefix(id),
            timeout: Duration::from_secs(10),
            makes_room: id == "control",
            ..JetStreamOptions::new(self.server.url())
        }
    }

    pub(crate) async fn control(&self) -> Arc<JetStreamBus> {
        JetStreamBus::connect(&self.options("control")).await.unwrap()
    }

    fn raw_options(&self, id: &str) -> ConnectOptions {
        ConnectOptions::new().custom_inbox_prefix(inbox_prefix(id)).nkey(self.seed(id))
    }

    pub(crate) async fn raw(&self, id: &str) -> async_nats::Client {
        self.raw_options(id).connect(self.server.url()).await.unwrap()
    }

    /// The same, and what the server refuses it.
    pub(crate) async fn raw_with_refusals(&self, id: &str) -> (async_nats::Client, mpsc::UnboundedReceiver<String>) {
        let (sender, refusals) = mpsc::unbounded_channel();
        let options = self.raw_options(id).event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let _nobody_waits = sender.send(error.to_string());
            }
            std::future::ready(())
        });
        (options.connect(self.server.url()).await.unwrap(), refusals)
    }

    pub(crate) async fn watcher(&self) -> async_nats::Client {
        let options = ConnectOptions::new().user_and_password("watcher".to_owned(), "watcher".to_owned());
        options.connect(self.server.url()).await.unwrap()
    }
}

pub(crate) async fn publish(bus: &dyn Bus, stream: Stream, message: Message) -> u64 {
    bus.publish(stream, vec![message]).await.pop().unwrap().unwrap().seq
}
