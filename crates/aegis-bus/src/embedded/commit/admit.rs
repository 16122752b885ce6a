//! A keeper as it comes back at a start: what it still has of what was published, and what becomes of the rest. Its positions are numbers,
//! and a file that was replaced, or restored from a backup and written on, gives the same numbers to other messages; so the last id of
//! each run is compared.

use super::Work;
use crate::BusError;
use crate::embedded::kept::{Keeper, NOBODY, Source};
use crate::embedded::schema::unsigned;
use crate::message_id;

/// Runs that one query returns.
const RUNS: i64 = 256;

/// What a keeper has at a position.
enum Found {
    /// The message that was published.
    Same,
    /// Another one, or a position that was not given away yet.
    Other,
    /// None that can be read: damaged. Or it is not known what was there.
    Unknown,
}

async fn find(keeper: &dyn Keeper, position: i64, id: &str) -> Result<Found, BusError> {
    if position > keeper.last() {
        return Ok(Found::Other);
    }
    let held = keeper.read(position, 1).await?;
    Ok(match held.first().filter(|held| held.position == position && !id.is_empty()) {
        Some(held) if message_id::is_same(id, &held.msg_id) => Found::Same,
        Some(_) => Found::Other,
        None => Found::Unknown,
    })
}

impl Work<'_> {
    /// The number of a keeper. Runs of it that the keeper has no more as they were are nobody's from then on.
    pub(super) async fn admit(&mut self, name: String, keeper: &dyn Keeper) -> Result<u64, BusError> {
        let newest = self.state.sources.iter().filter(|(_, source)| source.name == name).max_by_key(|(number, _)| **number);
        let Some((number, source)) = newest.map(|(number, source)| (*number, source.clone())) else {
            return self.add_source(name).await;
        };
        if let Some((position, id)) = self.other_after(number, &source, keeper).await? {
            let lost = self.cut(number, position, &id).await?;
            tracing::error!(
                keeper = name,
                last_published = source.last_position,
                same_up_to = position,
                lost,
                "what was published from here is not here any more: replaced, or restored from a backup; whoever has not read it yet never will"
            );
        }
        Ok(unsigned(number))
    }

    async fn add_source(&mut self, name: String) -> Result<u64, BusError> {
        // Above `NOBODY`.
        let number = self.state.sources.keys().max().map_or(1, |last| last + 1);
        sqlx::query("INSERT INTO sources (source, name, last_position, last_id) VALUES (?1, ?2, 0, '')")
            .bind(number)
            .bind(&name)
            .execute(&mut *self.conn)
            .await?;
        self.state.sources.insert(number, Source { name, last_position: 0, last_id: String::new() });
        Ok(unsigned(number))
    }

    /// The last position, and its id, up to which the keeper has what was published, if it has other messages behind it. A file only grows,
    /// so one place that is the same vouches for all before it.
    async fn other_after(
        &mut self,
        number: i64,
        source: &Source,
        keeper: &dyn Keeper,
    ) -> Result<Option<(i64, String)>, BusError> {
        let mut other = match find(keeper, source.last_position, &source.last_id).await? {
            Found::Same => return Ok(None),
            Found::Other => !source.last_id.is_empty(),
            Found::Unknown => false,
        };
        let mut before = i64::MAX;
        loop {
            let runs: Vec<(i64, i64, String)> = sqlx::query_as(
                "SELECT first_position, count, last_id FROM runs WHERE source = ?1 AND first_position < ?2
                 ORDER BY first_position DESC LIMIT ?3",
            )
            .bind(number)
            .bind(before)
            .bind(RUNS)
            .fetch_all(&mut *self.conn)
            .await?;
            if runs.is_empty() {
                return Ok(other.then_some((0, String::new())));
            }
            for (first, count, id) in runs {
                let last = first + count - 1;
                match find(keeper, last, &id).await? {
                    Found::Same => return Ok(other.then_some((last, id))),
                    Found::Other => other = true,
                    Found::Unknown => {}
                }
                before = first;
            }
        }
    }

    /// Takes the runs behind `position` from a keeper; how many messages they are.
    async fn cut(&mut self, number: i64, position: i64, id: &str) -> Result<u64, BusError> {
        let lost: Option<i64> = sqlx::query_scalar("SELECT sum(count) FROM runs WHERE source = ?1 AND first_position > ?2")
            .bind(number)
            .bind(position)
            .fetch_one(&mut *self.conn)
            .await?;
        sqlx::query("UPDATE runs SET source = ?3 WHERE source = ?1 AND first_position > ?2")
            .bind(number)
            .bind(position)
            .bind(NOBODY)
            .execute(&mut *self.conn)
            .await?;
        sqlx::query("UPDATE sources SET last_position = ?2, last_id = ?3 WHERE source = ?1")
            .bind(number)
            .bind(position)
            .bind(id)
            .execute(&mut *self.conn)
            .await?;
        if let Some(source) = self.state.sources.get_mut(&number) {
            source.last_position = position;
            id.clone_into(&mut source.last_id);
        }
        Ok(lost.map_or(0, unsigned))
    }
}
