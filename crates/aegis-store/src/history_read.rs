//! Reads the history: by id, by kind, agent and run, in order of arrival, and lane by lane.
//! Promises that no statement passes through more of the history than it is asked for (`history_plans`), and that of several rows of one id none is
//! left out in silence: they come in an order that no producer can choose.

use aegis_model::{CONTROL, EventId, EventKind, LaneReach, TenantId, Timestamp, is_derived};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::history::{HistoryFilter, HistoryRow, history, mark_of};
use crate::text::keyed;
use crate::{Dialect, Store, StoreError, page, row};

/// Rows of one id that are read at most. Honest producers never give one to two events.
const MOST_OF_AN_ID: u32 = 100;

pub(crate) const ANY_PLACE: &str = "SELECT place FROM history LIMIT 1";

/// Along the places alone: by any index the database would sort all the rest for every page.
pub(crate) const IN_ORDER: &str =
    "SELECT * FROM history WHERE place > $1 AND tenant_id || '' = $2 AND +ts >= $3 AND +ts < $4 ORDER BY place LIMIT $5";

pub(crate) const LANES_SINCE: &str = "SELECT lane, MIN(seq) AS first_seq FROM history
    WHERE tenant_id = $1 AND ts >= $2 AND receipt_hash IS NOT NULL AND lane IS NOT NULL AND seq IS NOT NULL AND proved = 1 GROUP BY lane";

pub(crate) const PROVED_OF_LANE: &str =
    "SELECT * FROM history WHERE tenant_id = $1 AND lane = $2 AND seq > $3 AND proved = 1 ORDER BY seq, place LIMIT $4";

/// Where an export goes on: behind a receipt's place in its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePlace {
    lane: String,
    seq: i64,
    mark: String,
    twin: i64,
}

/// The rows of one id, of one lane where one is asked for. First what control sealed, whose key no edge has; of an id that is derived next what was observed,
/// which edges could seal something under; then what proved itself, in the order in which it came; and what proves nothing last.
pub(crate) fn of_id(id: EventId, is_of_lane: bool, limit: u32) -> String {
    let observed = if is_derived(id) { 1 } else { 4 };
    let own = format!(".{CONTROL}.");
    let length = own.len();
    let (of_lane, observations) = if is_of_lane {
        (" AND lane = $3", String::new())
    } else {
        let text = "FROM history WHERE tenant_id = $1 AND event_id = $2 AND lane IS NULL";
        ("", format!(" UNION ALL SELECT place, {observed} AS turn {text}"))
    };
    format!(
        "SELECT h.* FROM (
             SELECT place, turn FROM (
                 SELECT place, CASE WHEN proved = 1 AND substr(lane, 1, length(tenant_id) + {length}) = tenant_id || '{own}' THEN 0
                     WHEN proved = 1 THEN 2 WHEN proved = 2 THEN 3 ELSE 5 END AS turn
                 FROM history WHERE tenant_id = $1 AND event_id = $2 AND lane IS NOT NULL{of_lane}{observations}
             ) u ORDER BY turn, place LIMIT {limit}
         ) t JOIN history h ON h.place = t.place ORDER BY t.turn, t.place"
    )
}

/// A list, newest first, and its values behind the tenant, which is the first. Each part goes along one index.
pub(crate) fn list_of(filter: HistoryFilter<'_>, (limit, offset): (i64, i64)) -> (String, Vec<String>) {
    let mut values = Vec::new();
    let mut bind = |value: String| {
        values.push(value);
        format!("${}", values.len() + 1)
    };
    let named: Vec<(&str, &str)> = [("run_id", filter.run_id), ("agent_id", filter.agent_id)]
        .into_iter()
        .filter_map(|(column, value)| Some((column, value?)))
        .collect();
    // The first is gone along. Of an agent in a run the run: it is shorter.
    let mut conditions: Vec<String> = named
        .iter()
        .enumerate()
        .map(|(nth, (column, value))| {
            let hidden = if nth == 0 { "" } else { " || ''" };
            format!("{column}{hidden} = {}", bind(keyed(value).into_owned()))
        })
        .collect();
    let is_by_kind = named.is_empty() && !filter.kinds.is_empty() && !filter.kinds.contains(&EventKind::AuthorizeDecision);
    if !filter.kinds.is_empty() {
        let kinds: Vec<String> = filter.kinds.iter().map(|kind| bind(kind.as_str().to_owned())).collect();
        let kinds = kinds.join(", ");
        conditions.push(if is_by_kind {
            format!("kind IN ({kinds}) AND kind <> '{}'", EventKind::AuthorizeDecision.as_str())
        } else {
            format!("kind IN ({kinds})")
        });
    }
    let parts: &[&str] = match (filter.receipts_only, is_by_kind || !named.is_empty()) {
        (true, _) => &["receipt_hash IS NOT NULL"],
        (false, true) => &["1 = 1"],
        (false, false) => &["receipt_hash IS NOT NULL", "receipt_hash IS NULL"],
    };
    let rows = |part: &str, columns: &str| {
        let all: Vec<&str> = std::iter::once(part).chain(conditions.iter().map(String::as_str)).collect();
        format!("SELECT {columns} FROM history WHERE tenant_id = $1 AND {} ORDER BY ts DESC, place DESC", all.join(" AND "))
    };
    let text = if let [part] = parts {
        format!("{} LIMIT {limit} OFFSET {offset}", rows(part, "*"))
    } else {
        // Each part says itself how far it goes: Postgres would sort all of them.
        let most = limit.saturating_add(offset);
        let part = |part: &&str| format!("SELECT * FROM ({} LIMIT {most}) p", rows(part, "place, ts"));
        let parts: Vec<String> = parts.iter().map(part).collect();
        format!(
            "SELECT h.* FROM (SELECT place FROM ({}) u ORDER BY ts DESC, place DESC LIMIT {limit} OFFSET {offset}) t
             JOIN history h ON h.place = t.place ORDER BY h.ts DESC, h.place DESC",
            parts.join(" UNION ALL ")
        )
    };
    (text, values)
}

pub(crate) fn export_of(dialect: Dialect) -> String {
    let mark = mark_of(dialect);
    format!(
        "SELECT *, {mark} AS of_hash FROM history
         WHERE tenant_id = $1 AND lane IS NOT NULL AND seq IS NOT NULL AND (lane, seq, {mark}, twin) > ($2, $3, $4, $5)
         ORDER BY lane, seq, {mark}, twin LIMIT $6"
    )
}

fn lane_of(r: &AnyRow) -> Result<LaneReach, StoreError> {
    let missing: String = row::get(r, "missing")?;
    let stretch = |text: &str| text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    Ok(LaneReach {
        tenant_id: row::tenant(r)?,
        lane: row::get(r, "lane")?,
        head: row::get(r, "head")?,
        missing: missing.split(',').filter_map(stretch).collect(),
    })
}

fn place_of(r: &AnyRow) -> Result<LanePlace, StoreError> {
    Ok(LanePlace {
        lane: row::get(r, "lane")?,
        seq: row::get(r, "seq")?,
        mark: row::get(r, "of_hash")?,
        twin: row::get(r, "twin")?,
    })
}

impl Store {
    /// True for a history that was made anew, or restored without its rows.
    pub async fn history_is_empty(&self) -> Result<bool, StoreError> {
        let first: Option<i64> = sqlx::query_scalar(ANY_PLACE).fetch_optional(&self.inner.history_readers).await?;
        Ok(first.is_none())
    }

    /// The first of `history_events`: what control sealed, or what else may be taken for the event before the others.
    pub async fn history_event(&self, tenant: &TenantId, event_id: EventId) -> Result<Option<HistoryRow>, StoreError> {
        Ok(self.events_of_id(tenant, event_id, None, 1).await?.pop())
    }

    /// All that has an id, of one lane where one is named; at most a hundred. What control sealed comes first; then of an id that is derived what was
    /// observed; then what proved itself, in order of arrival, and what did not. A producer may seal what it likes under any id in its own lane, so there is
    /// more than one where one of them is not honest.
    pub async fn history_events(
        &self,
        tenant: &TenantId,
        event_id: EventId,
        lane: Option<&str>,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        self.events_of_id(tenant, event_id, lane, MOST_OF_AN_ID).await
    }

    async fn events_of_id(
        &self,
        tenant: &TenantId,
        event_id: EventId,
        lane: Option<&str>,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let mut query = sqlx::query(AssertSqlSafe(of_id(event_id, lane.is_some(), limit)))
            .bind(tenant.as_str())
            .bind(event_id.as_bytes().as_slice());
        if let Some(lane) = lane {
            query = query.bind(lane);
        }
        let rows = query.fetch_all(&self.inner.history_readers).await?;
        rows.iter().map(history).collect()
    }

    /// The tenant's events that pass the filter, newest first by event time.
    pub async fn list_history(
        &self,
        tenant: &TenantId,
        filter: HistoryFilter<'_>,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let (text, values) = list_of(filter, page(limit, offset));
        let query = sqlx::query(AssertSqlSafe(text)).bind(tenant.as_str());
        let query = values.into_iter().fold(query, |query, value| query.bind(value));
        let rows = query.fetch_all(&self.inner.history_readers).await?;
        rows.iter().map(history).collect()
    }

    /// The tenant's events of `[from, to)` after a place of the history, in the order in which they came: each with its place.
    pub async fn history_in_order(
        &self,
        tenant: &TenantId,
        after: i64,
        (from, to): (Timestamp, Timestamp),
        limit: u32,
    ) -> Result<Vec<(i64, HistoryRow)>, StoreError> {
        let rows = sqlx::query(IN_ORDER)
            .bind(after)
            .bind(tenant.as_str())
            .bind(from.as_micros())
            .bind(to.as_micros())
            .bind(page(limit, 0).0)
            .fetch_all(&self.inner.history_readers)
            .await?;
        rows.iter().map(|r| Ok((row::get(r, "place")?, history(r)?))).collect()
    }

    /// How far a lane is known.
    pub async fn history_lane(&self, tenant: &TenantId, lane: &str) -> Result<Option<LaneReach>, StoreError> {
        let found = sqlx::query("SELECT * FROM history_lanes WHERE tenant_id = $1 AND lane = $2")
            .bind(tenant.as_str())
            .bind(lane)
            .fetch_optional(&self.inner.history_readers)
            .await?;
        found.as_ref().map(lane_of).transpose()
    }

    /// Lanes of which something is missing: the first of every tenant, then the second of each, and so on.
    pub async fn lanes_with_gaps(&self) -> Result<Vec<LaneReach>, StoreError> {
        let rows = sqlx::query(
            "SELECT tenant_id, lane, head, missing FROM (
                 SELECT l.*, ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY lane) AS turn FROM history_lanes l WHERE missing <> ''
             ) t ORDER BY turn, tenant_id LIMIT 10000",
        )
        .fetch_all(&self.inner.history_readers)
        .await?;
        rows.iter().map(lane_of).collect()
    }

    /// The lanes in which a tenant has proved receipts of a time or later, each with the first `seq` of these.
    pub async fn lanes_since(&self, tenant: &TenantId, from: Timestamp) -> Result<Vec<(String, i64)>, StoreError> {
        let rows =
            sqlx::query(LANES_SINCE).bind(tenant.as_str()).bind(from.as_micros()).fetch_all(&self.inner.history_readers).await?;
        rows.iter().map(|r| Ok((row::get(r, "lane")?, row::get(r, "first_seq")?))).collect()
    }

    /// A tenant's proved receipts of one lane behind a `seq`, in order. What proves nothing is whatever its sender says, as often as he says it, and stands
    /// before none of them.
    pub async fn proved_of_lane(
        &self,
        tenant: &TenantId,
        lane: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let rows = sqlx::query(PROVED_OF_LANE)
            .bind(tenant.as_str())
            .bind(lane)
            .bind(after)
            .bind(page(limit, 0).0)
            .fetch_all(&self.inner.history_readers)
            .await?;
        rows.iter().map(history).collect()
    }

    /// The tenant's receipts lane by lane in order of `seq`, behind a place (none: from the start), each with its own: what a verifier reads. Of one `seq`
    /// there may be any number, whoever sent them: in the order of their hashes.
    pub async fn export_lanes(
        &self,
        tenant: &TenantId,
        after: Option<&LanePlace>,
        limit: u32,
    ) -> Result<Vec<(LanePlace, HistoryRow)>, StoreError> {
        let (lane, seq, mark, twin) =
            after.map_or(("", 0, "", 0), |after| (after.lane.as_str(), after.seq, after.mark.as_str(), after.twin));
        let rows = sqlx::query(AssertSqlSafe(export_of(self.inner.dialect)))
            .bind(tenant.as_str())
            .bind(lane)
            .bind(seq)
            .bind(mark)
            .bind(twin)
            .bind(page(limit, 0).0)
            .fetch_all(&self.inner.history_readers)
            .await?;
        rows.iter().map(|r| Ok((place_of(r)?, history(r)?))).collect()
    }
}
