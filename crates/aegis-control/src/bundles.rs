//! Each tenant's policy bundle as control sees it: the packs, the tenant's own policies and its registered tools.
//! Promises that a change which does not load replaces nothing.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_model::{TenantId, ToolRecord};
use aegis_policy::{PolicyBundle, PolicySource};
use parking_lot::Mutex;

use crate::control::Control;
use crate::problem::Problem;

/// How many tenants' bundles are held; past it they are loaded again when needed.
const CAPACITY: usize = 1024;
/// Name under which errors point at the tenant's own text; the edge loads it under the same name.
const TENANT_SOURCE: &str = "tenant";

/// Loaded bundles by tenant.
#[derive(Debug)]
pub(crate) struct Bundles {
    packs: Vec<PolicySource>,
    held: Mutex<HashMap<TenantId, Arc<PolicyBundle>>>,
}

impl Bundles {
    /// Checks that the packs every tenant has load at all: without them nothing may start.
    pub(crate) fn new(packs: Vec<PolicySource>) -> Result<Self, String> {
        PolicyBundle::load(&packs, &[]).map_err(|error| error.to_string())?;
        Ok(Self { packs, held: Mutex::new(HashMap::new()) })
    }

    fn get(&self, tenant: &TenantId) -> Option<Arc<PolicyBundle>> {
        self.held.lock().get(tenant).cloned()
    }

    /// Makes `bundle` the tenant's running one.
    pub(crate) fn set(&self, tenant: &TenantId, bundle: Arc<PolicyBundle>) {
        let mut held = self.held.lock();
        if held.len() >= CAPACITY && !held.contains_key(tenant) {
            held.clear();
        }
        held.insert(tenant.clone(), bundle);
    }
}

impl Control {
    /// The tenant's running bundle.
    pub(crate) async fn bundle(&self, tenant: &TenantId) -> Result<Arc<PolicyBundle>, Problem> {
        if let Some(bundle) = self.bundles.get(tenant) {
            return Ok(bundle);
        }
        // Under the turn of the registry, so that an old state read here cannot replace a newer one.
        let _turn = self.registry_turn.lock().await;
        if let Some(bundle) = self.bundles.get(tenant) {
            return Ok(bundle);
        }
        let tools = self.store.list_tools(tenant).await?;
        let text = self.store.policies(tenant).await?.unwrap_or_default();
        let bundle = self.load_bundle(text, tools).await?;
        self.bundles.set(tenant, Arc::clone(&bundle));
        Ok(bundle)
    }

    /// Loads the packs, the tenant's `text` and its `tools`. 422 with line and column where it does not load.
    pub(crate) async fn load_bundle(&self, text: String, tools: Vec<ToolRecord>) -> Result<Arc<PolicyBundle>, Problem> {
        let mut sources = self.bundles.packs.clone();
        if !text.trim().is_empty() {
            sources.push(PolicySource { name: TENANT_SOURCE.to_owned(), text });
        }
        match tokio::task::spawn_blocking(move || PolicyBundle::load(&sources, &tools)).await {
            Ok(Ok(bundle)) => Ok(Arc::new(bundle)),
            Ok(Err(error)) => Err(Problem::unprocessable("invalid_policy", error.to_string())),
            Err(error) => Err(Problem::internal(error)),
        }
    }
}
