//! Whether edges live, as their tenants were told last. A change and the facts of it, one for each tenant, commit together, and once.

use std::fmt;
use std::str::FromStr;

use crate::{OutboxRow, Store, StoreError, outbox, row};

/// What an edge's tenants were told of it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeLife {
    /// It was heard.
    Live,
    /// It lived, and was not heard for too long.
    Silent,
    /// It lived, and stopped as it should.
    Left,
}

impl EdgeLife {
    /// The word in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Silent => "silent",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for EdgeLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EdgeLife {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "live" => Ok(Self::Live),
            "silent" => Ok(Self::Silent),
            "left" => Ok(Self::Left),
            _ => Err("no life of an edge"),
        }
    }
}

impl Store {
    /// Every edge that was ever heard, by id.
    pub async fn edge_lives(&self) -> Result<Vec<(String, EdgeLife)>, StoreError> {
        let rows = sqlx::query("SELECT edge_id, life FROM edge_lives ORDER BY edge_id").fetch_all(&self.inner.readers).await?;
        rows.iter().map(|r| Ok((row::get(r, "edge_id")?, row::word(r, "life")?))).collect()
    }

    /// Changes what is known of an edge, if it is still `from` (None: nothing yet), and writes `facts` with it. False if it is something else.
    ///
    /// # Errors
    /// `UnknownTenant` of a fact.
    pub async fn change_edge_life(
        &self,
        edge_id: &str,
        from: Option<EdgeLife>,
        to: EdgeLife,
        facts: &[OutboxRow],
    ) -> Result<bool, StoreError> {
        let now = self.now().as_micros();
        let mut tx = self.begin_write().await?;
        let changed = match from {
            None => {
                sqlx::query(
                    "INSERT INTO edge_lives (edge_id, life, changed_at) VALUES ($1, $2, $3) ON CONFLICT (edge_id) DO NOTHING",
                )
                .bind(edge_id)
                .bind(to.as_str())
                .bind(now)
                .execute(&mut *tx)
                .await?
            }
            Some(from) => {
                sqlx::query("UPDATE edge_lives SET life = $3, changed_at = $4 WHERE edge_id = $1 AND life = $2")
                    .bind(edge_id)
                    .bind(from.as_str())
                    .bind(to.as_str())
                    .bind(now)
                    .execute(&mut *tx)
                    .await?
            }
        };
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        for fact in facts {
            outbox::write(&mut tx, &fact.tenant_id, std::slice::from_ref(fact)).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}
