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
    let (sender, connected) = oneshot::channel::<Result<(Client, Arc<Answers>), BusError>>();
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

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// How nice each thread of such a connection is.
    fn niceness() -> Vec<i32> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let of_one = |stat: String| {
            // The name in parentheses may hold spaces; niceness is the 17th field behind it.
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
            if name == "aegis-nats" { fields.split_whitespace().nth(16)?.parse().ok() } else { None }
        };
        stats.filter_map(of_one).collect()
    }

    #[tokio::test]
    async fn it_works_behind_its_maker_and_ends_with_what_keeps_it() {
        // Nobody is there: it goes on trying.
        let connection = connect_behind(&JetStreamOptions::new("nats://127.0.0.1:1")).await.unwrap();
        let nice = niceness();
        assert!(nice.len() == 1 && nice[0] > 0, "{nice:?}");
        drop(connection);
        let ended = async {
            while !niceness().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, ended).await.unwrap();
    }
}
