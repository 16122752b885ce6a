//! The yardstick: an axum server that parses a JSON body and writes it back, and does nothing else.

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;

pub(crate) async fn echo(body: Bytes) -> Response {
    let Ok(value) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let Ok(json) = serde_json::to_vec(&value) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// Serves on a free port, whose address is the first line of standard output.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    println!("echo: listening on http://{}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/v1/authorize", post(echo))).await.context("the echo ended")
}
