//! The floor: what a durable answer costs on this disk, whoever gives it. The echo, but each body stands synced in a plain file before
//! it is answered. Bodies that came meanwhile share one write and one sync, in place, so that the file system has nothing else to do.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::{mpsc, oneshot};

/// Written over and over.
const FILE_BYTES: usize = 16 << 20;
/// Bodies that may wait, and that one sync takes at most.
const WAITING: usize = 4096;

struct Entry {
    body: Bytes,
    durable: oneshot::Sender<()>,
}

/// Serves on a free port, whose address is the first line of standard output; bodies go to a file at `path`.
pub(crate) async fn serve(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all_at(&vec![0; FILE_BYTES], 0)?;
    file.sync_all()?;
    let (queue, entries) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        if let Err(error) = keep(&file, entries) {
            eprintln!("the file takes nothing any more: {error}");
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    println!("durable echo: listening on http://{}", listener.local_addr()?);
    let router = Router::new().route("/v1/authorize", post(answer)).with_state(queue);
    axum::serve(listener, router).await.context("the durable echo ended")
}

async fn answer(State(queue): State<mpsc::Sender<Entry>>, body: Bytes) -> Response {
    let (durable, done) = oneshot::channel();
    let taken = queue.send(Entry { body: body.clone(), durable }).await;
    match (taken, done.await) {
        (Ok(()), Ok(())) => crate::echo::echo(body).await,
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn keep(file: &std::fs::File, mut entries: mpsc::Receiver<Entry>) -> std::io::Result<()> {
    let (mut group, mut bytes, mut offset) = (Vec::new(), Vec::new(), 0);
    while entries.blocking_recv_many(&mut group, WAITING) > 0 {
        bytes.clear();
        group.iter().for_each(|entry: &Entry| bytes.extend_from_slice(&entry.body));
        bytes.truncate(FILE_BYTES);
        if offset + bytes.len() > FILE_BYTES {
            offset = 0;
        }
        file.write_all_at(&bytes, offset as u64)?;
        file.sync_data()?;
        offset += bytes.len();
        for entry in group.drain(..) {
            let _gone_already = entry.durable.send(());
        }
    }
    Ok(())
}
