//! A connection that works on a thread of its own, behind those that answer agents: what is shipped comes in bursts of hundreds of messages, which
//! the client writes, and whose acknowledgements it sorts, without a pause. Promises that the thread ends with the connection.

use std::sync::Arc;

use async_nats::Client;
use tokio::sync::oneshot;

use super::connect::{JetStreamOptions, connect};
use super::elsewhere::Answers;
use super::unavailable;
use crate::BusError;

/// Keeps the thread, and so the connection.
#[derive(Debug)]
pub(super) struct Kept(Option<oneshot::Sender<()>>);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(let_go) = self.0.take() {
            let _the_thread_has_ended = let_go.send(());
        }
    }
}

/// Connects as `connect` does.
pub(super) async fn connect_behind(options: &JetStreamOptions) -> Result<(Client, Arc<Answers>, Kept), BusError> {
    let (keep, let_go) = oneshot::channel();
    let (sender, connected) = oneshot::channel();
    let options = options.clone();
    let work = move || async move {
        // The client's tasks belong to the runtime of whoever connects.
        let connection = connect(&options).await;
        if sender.send(connection).is_ok() {
            let _dropped_or_told = let_go.await;
        }
    };
    aegis_threads::spawn("aegis-nats", work).map_err(unavailable)?;
    let (client, answers) = connected.await.map_err(unavailable)??;
    Ok((client, answers, Kept(Some(keep))))
}
