//! The export a verifier reads: every receipt of the tenant, lane by lane in order of seq, one wire form a line.
//! Promises to hold one page in memory, whatever the length; an error in the middle breaks the body off instead of ending it.

use std::sync::Arc;

use aegis_model::TenantId;
use aegis_store::{HistoryRow, LanePlace};
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;

use crate::control::Control;
use crate::evidence::missing_view;
use crate::problem::Problem;
use crate::routes::Call;

/// Receipts read at once.
const PAGE: u32 = 500;

/// Where the export stands.
#[derive(Debug)]
struct Cursor {
    control: Arc<Control>,
    tenant: TenantId,
    after: Option<LanePlace>,
}

pub(crate) async fn stream(control: Arc<Control>, call: &Call) -> Result<Response, Problem> {
    let cursor = Cursor { control, tenant: call.tenant().clone(), after: None };
    let pages = stream::try_unfold(cursor, |mut cursor| async move {
        match cursor.next_page().await {
            Ok(Some(page)) => Ok(Some((page, cursor))),
            Ok(None) => Ok(None),
            Err(problem) => Err(std::io::Error::other(problem.code)),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"receipts.jsonl\""),
    ];
    Ok((headers, Body::from_stream(pages)).into_response())
}

impl Cursor {
    async fn next_page(&mut self) -> Result<Option<Bytes>, Problem> {
        let found = self.control.store.export_lanes(&self.tenant, self.after.as_ref(), PAGE).await?;
        let (places, rows): (Vec<LanePlace>, Vec<HistoryRow>) = found.into_iter().unzip();
        let Some(last) = places.into_iter().next_back() else { return Ok(None) };
        self.after = Some(last);
        let mut page = Vec::new();
        for (row, wire) in rows.iter().zip(self.control.wires(&rows).await?) {
            // What is gone stands there as a line without a receipt, which no verifier accepts: nobody rolls it back unseen.
            match wire {
                Some(wire) => page.extend_from_slice(wire.as_bytes()),
                None => page.extend_from_slice(missing_view(row).to_string().as_bytes()),
            }
            page.push(b'\n');
        }
        Ok(Some(Bytes::from(page)))
    }
}
