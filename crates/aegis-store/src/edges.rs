//! Edges and what they were enrolled with. Only the SHA-256 of an invitation is stored, and it is used once.

use std::collections::BTreeSet;

use aegis_model::{TenantId, Timestamp};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::any::AnyRow;

use crate::keys::{hash_of, random};
use crate::tenants::MAX_SECRET;
use crate::{OutboxRow, Secret, Store, StoreError, outbox, row};

/// Most tenants of one edge.
const MAX_TENANTS: usize = 1024;

/// What other users of the NATS server are called, and what detection calls itself in what it says.
const RESERVED: [&str; 3] = ["control", "admin", "soc"];

const fn no_edge_id() -> StoreError {
    StoreError::Invalid { what: "edge id", why: "must match [a-z0-9_-]{1,64} and not be `control`, `admin` or `soc`" }
}

/// An enrolled edge's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeKey {
    pub edge_id: String,
    /// Id of the receipt key.
    pub key_id: String,
    /// The receipt key, base64.
    pub public_key: String,
    /// The public half of its NATS login (`U...`).
    pub nkey: String,
    pub tenants: BTreeSet<TenantId>,
    pub enrolled_at: Timestamp,
}

/// What an edge tells of itself when it enrols.
#[derive(Clone, Copy, Debug)]
pub struct EdgePublicKeys<'a> {
    pub key_id: &'a str,
    /// The receipt key, base64.
    pub public_key: &'a str,
    pub nkey: &'a str,
}

/// What became of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    New(EdgeKey),
    /// It happened before, with the same invitation and keys.
    Again(EdgeKey),
}

/// True for `[a-z0-9_-]{1,64}`, and not a name that others have.
fn is_edge_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    !id.is_empty() && id.len() <= 64 && id.bytes().all(plain) && !RESERVED.contains(&id)
}

fn edge_key(r: &AnyRow) -> Result<EdgeKey, StoreError> {
    Ok(EdgeKey {
        edge_id: row::get(r, "edge_id")?,
        key_id: row::get(r, "key_id")?,
        public_key: row::get(r, "public_key")?,
        nkey: row::get(r, "nkey")?,
        tenants: row::json(r, "tenants")?,
        enrolled_at: Timestamp::from_micros(row::get(r, "enrolled_at")?),
    })
}

impl Store {
    /// Invites an edge to enrol for these tenants until `expires_at`. The token is returned this once.
    ///
    /// # Errors
    /// `Invalid` for an id that is none, `UnknownTenant`.
    pub async fn invite_edge(
        &self,
        edge_id: &str,
        tenants: &BTreeSet<TenantId>,
        expires_at: Timestamp,
    ) -> Result<Secret, StoreError> {
        if !is_edge_id(edge_id) {
            return Err(no_edge_id());
        }
        if tenants.is_empty() || tenants.len() > MAX_TENANTS {
            return Err(StoreError::Invalid { what: "tenants", why: "an edge has 1 to 1024 of them" });
        }
        for tenant in tenants {
            if !self.tenant_exists(tenant).await? {
                return Err(StoreError::UnknownTenant(tenant.clone()));
            }
        }
        let token = format!("aegis_edge_{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        sqlx::query(
            "INSERT INTO edge_invitations (edge_id, token_hash, tenants, expires_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (edge_id) DO UPDATE SET token_hash = excluded.token_hash, tenants = excluded.tenants,
             expires_at = excluded.expires_at",
        )
        .bind(edge_id)
        .bind(hash_of(&token).to_vec())
        .bind(row::to_json(tenants, "tenants")?)
        .bind(expires_at.as_micros())
        .execute(&self.inner.writer)
        .await?;
        Ok(Secret::new(token))
    }

    /// Uses an invitation: the edge's keys are known from then on, and `facts` of it commit with them. None for a token that is unknown, used
    /// or past its time; but the same keys with the same token, as long as that ran, are answered again.
    pub async fn enroll_edge(
        &self,
        token: &str,
        keys: EdgePublicKeys<'_>,
        facts: &(dyn Fn(&EdgeKey) -> Result<Vec<OutboxRow>, StoreError> + Send + Sync),
    ) -> Result<Option<Enrolment>, StoreError> {
        if token.len() > MAX_SECRET {
            return Ok(None);
        }
        let now = self.now();
        let token_hash = hash_of(token).to_vec();
        let mut tx = self.begin_write().await?;
        let invited = sqlx::query(
            "DELETE FROM edge_invitations WHERE token_hash = $1 AND expires_at > $2 RETURNING edge_id, tenants, expires_at",
        )
        .bind(&token_hash)
        .bind(now.as_micros())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(invited) = invited else {
            let again = sqlx::query(
                "SELECT * FROM edge_keys WHERE token_hash = $1 AND again_until > $2 AND key_id = $3 AND public_key = $4 AND nkey = $5
                 AND key_id = (SELECT later.key_id FROM edge_keys later WHERE later.edge_id = edge_keys.edge_id ORDER BY later.enrolled_at DESC, later.key_id DESC LIMIT 1)",
            )
            .bind(&token_hash)
            .bind(now.as_micros())
            .bind(keys.key_id)
            .bind(keys.public_key)
            .bind(keys.nkey)
            .fetch_optional(&mut *tx)
            .await?;
            return again.as_ref().map(edge_key).transpose().map(|key| key.map(Enrolment::Again));
        };
        let key = EdgeKey {
            edge_id: row::get(&invited, "edge_id")?,
            key_id: keys.key_id.to_owned(),
            public_key: keys.public_key.to_owned(),
            nkey: keys.nkey.to_owned(),
            tenants: row::json(&invited, "tenants")?,
            enrolled_at: now,
        };
        // An earlier program may have invited it.
        if !is_edge_id(&key.edge_id) {
            return Err(no_edge_id());
        }
        let inserted = sqlx::query(
            "INSERT INTO edge_keys (key_id, edge_id, public_key, nkey, tenants, enrolled_at, token_hash, again_until)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (key_id) DO NOTHING",
        )
        .bind(keys.key_id)
        .bind(key.edge_id.as_str())
        .bind(keys.public_key)
        .bind(keys.nkey)
        .bind(row::to_json(&key.tenants, "tenants")?)
        .bind(now.as_micros())
        .bind(&token_hash)
        .bind(row::get::<i64>(&invited, "expires_at")?)
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Err(StoreError::Invalid { what: "edge key", why: "is enrolled already; an edge makes a new one" });
        }
        for fact in facts(&key)? {
            outbox::write(&mut tx, &fact.tenant_id, std::slice::from_ref(&fact)).await?;
        }
        tx.commit().await?;
        Ok(Some(Enrolment::New(key)))
    }

    /// Every key that an edge was enrolled with, oldest first.
    pub async fn edge_keys(&self) -> Result<Vec<EdgeKey>, StoreError> {
        let rows = sqlx::query("SELECT * FROM edge_keys ORDER BY enrolled_at, key_id").fetch_all(&self.inner.readers).await?;
        rows.iter().map(edge_key).collect()
    }
}
