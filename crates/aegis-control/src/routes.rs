//! The table of endpoints, and the one path every request takes: route, credential, body, handler.
//! Promises that an endpoint that is not in `ROUTES` does not exist and that none runs without its access check.

use std::sync::Arc;

use aegis_model::TenantId;
use aegis_store::Role::{Admin, Analyst, Approver, Auditor, Registrar};
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query as UriQuery, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use bytes::Bytes;

use crate::auth::{Access, Caller};
use crate::control::Control;
use crate::input::{self, MAX_ID, Query};
use crate::problem::Problem;
use crate::{
    agents, approvals, consume, containment, decide, detection, edges, evidence, export, fleet, health, keys, outcome, policies,
    registry, rules, settings, soc,
};

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Route {
    /// The HTTP method.
    pub method: Method,
    /// The path, with `{name}` for a variable part.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    op: Op,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Health,
    Ready,
    RegisterAgent,
    ListAgents,
    GetAgent,
    FreezeAgent,
    UnfreezeAgent,
    RevokeAgent,
    PutTool,
    ListTools,
    GetTool,
    PutMcpServer,
    ListMcpServers,
    GetMcpServer,
    PutMcpTools,
    ReportMcpManifest,
    QuarantineMcpServer,
    RestoreMcpServer,
    PutChannel,
    ListChannels,
    PutResource,
    ListResources,
    PutPolicies,
    GetPolicies,
    ActivateRule,
    RuleHistory,
    CommonRuleHistory,
    RuleSets,
    WaitingRules,
    FollowedLanes,
    PutSettings,
    GetSettings,
    PutWebhookSecret,
    PutCallbackSecret,
    ListContainment,
    ListEdges,
    ListApprovals,
    GetApproval,
    Approve,
    Reject,
    Edit,
    Consume,
    Outcome,
    ListDecisions,
    GetDecision,
    ListReceipts,
    ExportReceipts,
    GetReceipt,
    VerifyReceipt,
    ListAlerts,
    GetAlert,
    ListIncidents,
    GetIncident,
    CloseIncident,
    Timeline,
    Summary,
    AuditEvents,
    CreateKey,
    ListKeys,
    RevokeKey,
    EnrollEdge,
}

const fn get(path: &'static str, access: Access, op: Op) -> Route {
    Route { method: Method::GET, path, access, op }
}
const fn post(path: &'static str, access: Access, op: Op) -> Route {
    Route { method: Method::POST, path, access, op }
}
const fn put(path: &'static str, access: Access, op: Op) -> Route {
    Route { method: Method::PUT, path, access, op }
}
const fn delete(path: &'static str, access: Access, op: Op) -> Route {
    Route { method: Method::DELETE, path, access, op }
}

/// Everyone who works in the SOC or oversees it.
const READERS: Access = Access::Roles(&[Admin, Analyst, Auditor]);
/// Those who see what is registered.
const REGISTRY_READERS: Access = Access::Roles(&[Admin, Registrar, Approver, Analyst, Auditor]);
const REGISTRARS: Access = Access::Roles(&[Admin, Registrar]);
const ADMINS: Access = Access::Roles(&[Admin]);
const RESPONDERS: Access = Access::Roles(&[Admin, Analyst]);
/// Approving is a role of its own: an admin who may create keys may not also approve with the same key.
const APPROVERS: Access = Access::Roles(&[Approver]);
const CONSUMERS: Access = Access::AgentOr(&[Admin, Registrar]);
const AGENTS: Access = Access::AgentOr(&[]);

/// Every endpoint. The router, the access checks and the test that walks them are built from this table.
pub static ROUTES: &[Route] = &[
    get("/health", Access::Public, Op::Health),
    get("/readyz", Access::Public, Op::Ready),
    post("/v1/agents/register", REGISTRARS, Op::RegisterAgent),
    get("/v1/agents", REGISTRY_READERS, Op::ListAgents),
    get("/v1/agents/{id}", REGISTRY_READERS, Op::GetAgent),
    post("/v1/agents/{id}/freeze", RESPONDERS, Op::FreezeAgent),
    post("/v1/agents/{id}/unfreeze", RESPONDERS, Op::UnfreezeAgent),
    post("/v1/agents/{id}/revoke", ADMINS, Op::RevokeAgent),
    post("/v1/tools", REGISTRARS, Op::PutTool),
    get("/v1/tools", REGISTRY_READERS, Op::ListTools),
    get("/v1/tools/{tool}", REGISTRY_READERS, Op::GetTool),
    post("/v1/mcp/servers", REGISTRARS, Op::PutMcpServer),
    get("/v1/mcp/servers", REGISTRY_READERS, Op::ListMcpServers),
    get("/v1/mcp/servers/{key}", REGISTRY_READERS, Op::GetMcpServer),
    post("/v1/mcp/servers/{key}/tools", REGISTRARS, Op::PutMcpTools),
    post("/v1/mcp/servers/{key}/manifest", REGISTRARS, Op::ReportMcpManifest),
    post("/v1/mcp/servers/{key}/quarantine", RESPONDERS, Op::QuarantineMcpServer),
    post("/v1/mcp/servers/{key}/restore", RESPONDERS, Op::RestoreMcpServer),
    post("/v1/channels", REGISTRARS, Op::PutChannel),
    get("/v1/channels", REGISTRY_READERS, Op::ListChannels),
    post("/v1/resources", REGISTRARS, Op::PutResource),
    get("/v1/resources", REGISTRY_READERS, Op::ListResources),
    put("/v1/policies", ADMINS, Op::PutPolicies),
    get("/v1/policies", REGISTRY_READERS, Op::GetPolicies),
    post("/v1/rules", ADMINS, Op::ActivateRule),
    get("/v1/rules", READERS, Op::RuleHistory),
    get("/v1/rules/common", READERS, Op::CommonRuleHistory),
    get("/v1/rules/sets", READERS, Op::RuleSets),
    get("/v1/rules/waiting", READERS, Op::WaitingRules),
    get("/v1/detection/lanes", READERS, Op::FollowedLanes),
    put("/v1/settings", ADMINS, Op::PutSettings),
    get("/v1/settings", REGISTRY_READERS, Op::GetSettings),
    put("/v1/webhooks/github/secret", ADMINS, Op::PutWebhookSecret),
    put("/v1/callbacks/secret", ADMINS, Op::PutCallbackSecret),
    get("/v1/containment", REGISTRY_READERS, Op::ListContainment),
    get("/v1/edges", REGISTRY_READERS, Op::ListEdges),
    get("/v1/approvals", Access::Roles(&[Admin, Approver, Analyst, Auditor]), Op::ListApprovals),
    get("/v1/approvals/{id}", Access::AgentOr(&[Admin, Registrar, Approver, Analyst, Auditor]), Op::GetApproval),
    post("/v1/approvals/{id}/approve", APPROVERS, Op::Approve),
    post("/v1/approvals/{id}/reject", APPROVERS, Op::Reject),
    post("/v1/approvals/{id}/edit", APPROVERS, Op::Edit),
    post("/v1/approvals/{id}/consume", CONSUMERS, Op::Consume),
    post("/v1/decisions/{id}/outcome", AGENTS, Op::Outcome),
    get("/v1/decisions", READERS, Op::ListDecisions),
    get("/v1/decisions/{id}", Access::AgentOr(&[Admin, Approver, Analyst, Auditor]), Op::GetDecision),
    get("/v1/receipts", READERS, Op::ListReceipts),
    get("/v1/receipts/export", Access::Roles(&[Admin, Auditor]), Op::ExportReceipts),
    get("/v1/receipts/{id}", READERS, Op::GetReceipt),
    get("/v1/receipts/{id}/verify", READERS, Op::VerifyReceipt),
    get("/v1/alerts", READERS, Op::ListAlerts),
    get("/v1/alerts/{id}", READERS, Op::GetAlert),
    get("/v1/incidents", READERS, Op::ListIncidents),
    get("/v1/incidents/{id}", READERS, Op::GetIncident),
    post("/v1/incidents/{id}/close", RESPONDERS, Op::CloseIncident),
    get("/v1/runs/{id}/timeline", READERS, Op::Timeline),
    get("/v1/soc/summary", READERS, Op::Summary),
    get("/v1/audit/events", READERS, Op::AuditEvents),
    post("/v1/keys", ADMINS, Op::CreateKey),
    get("/v1/keys", ADMINS, Op::ListKeys),
    delete("/v1/keys/{id}", ADMINS, Op::RevokeKey),
    post("/v1/edges/enroll", Access::Invitation, Op::EnrollEdge),
];

/// An authenticated request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) query: Query,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn tenant(&self) -> &TenantId {
        self.caller.tenant()
    }

    /// A variable part of the path; the route table guarantees that it is there.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }
}

/// The control plane's HTTP endpoints, with JSON replies for unknown routes (404) and wrong methods (405).
///
/// The fallbacks belong to this router: routers merged into it must have none of their own.
pub fn router(control: Arc<Control>) -> Router {
    let mut router = Router::new();
    let mut done: Vec<&str> = Vec::new();
    for route in ROUTES {
        if done.contains(&route.path) {
            continue;
        }
        done.push(route.path);
        let mut methods: MethodRouter<Arc<Control>> = MethodRouter::new();
        for one in ROUTES.iter().filter(|other| other.path == route.path) {
            methods = methods.merge(on(filter_of(&one.method), move |State(control): State<Arc<Control>>, request: Request| {
                serve(control, one, request)
            }));
        }
        router = router.route(route.path, methods);
    }
    router
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
        })
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "unknown_route", "there is no such endpoint; docs/api.md lists them")
        })
        .with_state(control)
}

fn filter_of(method: &Method) -> MethodFilter {
    if method == Method::POST {
        MethodFilter::POST
    } else if method == Method::PUT {
        MethodFilter::PUT
    } else if method == Method::DELETE {
        MethodFilter::DELETE
    } else {
        MethodFilter::GET
    }
}

/// Runs a request. One that changes something runs in a task of its own, so that a client that hangs up in the middle cannot
/// leave a change without its receipt.
async fn serve(control: Arc<Control>, route: &'static Route, request: Request) -> Response {
    if route.method == Method::GET {
        return answer(control, route, request).await.into_response();
    }
    match tokio::spawn(answer(control, route, request)).await {
        Ok(answer) => answer.into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}

async fn answer(control: Arc<Control>, route: &'static Route, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let Some(caller) = control.authenticate(&parts.headers, route.access).await? else {
        return match route.op {
            Op::Ready => Ok(health::ready(&control).await),
            Op::EnrollEdge => edges::enroll(&control, &parts, body).await,
            _ => Ok(health::alive()),
        };
    };
    let call = read_call(&control, route, caller, &mut parts, body).await?;
    dispatch(control, route.op, call).await
}

async fn read_call(control: &Control, route: &Route, caller: Caller, parts: &mut Parts, body: Body) -> Result<Call, Problem> {
    let params = read_params(parts).await?;
    let query = UriQuery::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|_| Problem::bad_request("invalid_query", "the query string cannot be read"))?
        .0;
    let mut bytes = Bytes::new();
    if route.method == Method::POST || route.method == Method::PUT {
        bytes = input::read_body(&parts.headers, body, control.config.max_body_bytes).await?;
        if !bytes.is_empty() {
            input::require_json(&parts.headers)?;
        }
    }
    Ok(Call { caller, params, query: Query::new(query), body: bytes })
}

async fn read_params(parts: &mut Parts) -> Result<Vec<(String, String)>, Problem> {
    let unreadable = || Problem::bad_request("invalid_path", "the path is not UTF-8 after percent-decoding");
    let raw = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| unreadable())?;
    let params: Vec<_> = raw.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    for (key, value) in &params {
        input::check_text(key, value, MAX_ID)?;
    }
    Ok(params)
}

async fn dispatch(control: Arc<Control>, op: Op, call: Call) -> Result<Response, Problem> {
    let c = &*control;
    match op {
        // Without a caller: answered before.
        Op::Health | Op::EnrollEdge => Ok(health::alive()),
        Op::Ready => Ok(health::ready(c).await),
        Op::RegisterAgent => agents::register(c, &call).await,
        Op::ListAgents => agents::list(c, &call).await,
        Op::GetAgent => agents::get(c, &call).await,
        Op::FreezeAgent => containment::freeze_agent(c, &call).await,
        Op::UnfreezeAgent => containment::unfreeze_agent(c, &call).await,
        Op::RevokeAgent => containment::revoke_agent(c, &call).await,
        Op::PutTool => registry::put_tool(c, &call).await,
        Op::ListTools => registry::list_tools(c, &call).await,
        Op::GetTool => registry::get_tool(c, &call).await,
        Op::PutMcpServer => registry::mcp::put_server(c, &call).await,
        Op::ListMcpServers => registry::mcp::list(c, &call).await,
        Op::GetMcpServer => registry::mcp::get(c, &call).await,
        Op::PutMcpTools => registry::mcp::put_tools(c, &call).await,
        Op::ReportMcpManifest => registry::drift::report(c, &call).await,
        Op::QuarantineMcpServer => containment::quarantine_server(c, &call).await,
        Op::RestoreMcpServer => containment::restore_server(c, &call).await,
        Op::PutChannel => registry::put_channel(c, &call).await,
        Op::ListChannels => registry::list_channels(c, &call).await,
        Op::PutResource => registry::put_resource(c, &call).await,
        Op::ListResources => registry::list_resources(c, &call).await,
        Op::PutPolicies => policies::put(c, &call).await,
        Op::GetPolicies => policies::get(c, &call).await,
        Op::ActivateRule => rules::activate(c, &call).await,
        Op::RuleHistory => rules::history(c, &call).await,
        Op::CommonRuleHistory => rules::common_history(c, &call).await,
        Op::RuleSets => rules::sets(c, &call).await,
        Op::WaitingRules => rules::waiting(c, &call).await,
        Op::FollowedLanes => detection::lanes(c, &call).await,
        Op::PutSettings => settings::put(c, &call).await,
        Op::GetSettings => settings::get(c, &call).await,
        Op::PutWebhookSecret => settings::put_webhook_secret(c, &call).await,
        Op::PutCallbackSecret => settings::put_callback_secret(c, &call).await,
        Op::ListContainment => containment::list(c, &call).await,
        Op::ListEdges => fleet::list(c, &call),
        Op::ListApprovals => approvals::list(c, &call).await,
        Op::GetApproval => approvals::get(c, &call).await,
        Op::Approve => decide::approve(c, &call).await,
        Op::Reject => decide::reject(c, &call).await,
        Op::Edit => decide::edit(c, &call).await,
        Op::Consume => consume::consume(c, &call).await,
        Op::Outcome => outcome::report(c, &call).await,
        Op::ListDecisions => evidence::list_decisions(c, &call).await,
        Op::GetDecision => evidence::get_decision(c, &call).await,
        Op::ListReceipts => evidence::list_receipts(c, &call).await,
        Op::ExportReceipts => export::stream(control, &call).await,
        Op::GetReceipt => evidence::get_receipt(c, &call).await,
        Op::VerifyReceipt => evidence::verify_receipt(c, &call).await,
        Op::ListAlerts => soc::list_alerts(c, &call).await,
        Op::GetAlert => soc::get_alert(c, &call).await,
        Op::ListIncidents => soc::list_incidents(c, &call).await,
        Op::GetIncident => soc::get_incident(c, &call).await,
        Op::CloseIncident => soc::close_incident(c, &call).await,
        Op::Timeline => evidence::timeline(c, &call).await,
        Op::Summary => soc::summary(c, &call).await,
        Op::AuditEvents => evidence::audit_events(c, &call).await,
        Op::CreateKey => keys::create(c, &call).await,
        Op::ListKeys => keys::list(c, &call).await,
        Op::RevokeKey => keys::revoke(c, &call).await,
    }
}
