//! The GitHub tool as the GitHub pack knows it: usual actions with their risk, direction and typed arguments.
//! Declares what policies may name; registers nothing. An action is known to a bundle only when its registry has it.

use aegis_model::{ActionRecord, DataAccess, DefaultDecision, Destination, RiskLevel, ToolRecord};
use serde_json::{Map, Value, json};

use crate::parameters::{ParamType, Parameters, parameters_of};

/// The tools that the GitHub pack covers: direct calls, and the MCP server registered as `github`.
pub(crate) const TOOLS: [&str; 2] = ["github", "mcp:github"];

/// Arguments that name a repository which data comes from or goes to; every action may carry them.
const REPOSITORY_PARAMETERS: [&str; 3] = ["source_repository", "head_repository", "target_repository"];

/// name, JSON type (`strings`: an array of them)
type Parameter = (&'static str, &'static str);

/// A ready registration of GitHub's usual actions, for `POST /v1/tools`, demos and tests.
#[must_use]
pub fn github_tool() -> ToolRecord {
    let mut actions = vec![
        read("read_repository", "Read a repository's metadata and tree", &[("ref", "string")]),
        read("get_file_contents", "Read a file or folder", &[("path", "string"), ("ref", "string")]),
        read("list_commits", "List commits of a branch", &[("sha", "string"), ("page", "integer"), ("per_page", "integer")]),
        read("search_code", "Search code", &[("query", "string"), ("page", "integer")]),
        read("list_issues", "List issues", &[("state", "string"), ("labels", "strings"), ("page", "integer")]),
        read("get_issue", "Read an issue and its comments", &[("issue_number", "integer")]),
        read("list_pull_requests", "List pull requests", &[("state", "string"), ("base", "string"), ("page", "integer")]),
        read("get_pull_request", "Read a pull request and its diff", &[("pr_number", "integer")]),
        write(
            "create_issue",
            RiskLevel::Medium,
            "Open an issue",
            &[("title", "string"), ("body", "string"), ("labels", "strings")],
        ),
        write(
            "create_issue_comment",
            RiskLevel::Medium,
            "Comment on an issue or pull request",
            &[("issue_number", "integer"), ("body", "string")],
        ),
        write("create_branch", RiskLevel::Low, "Create a branch", &[("branch", "string"), ("from_branch", "string")]),
        write(
            "create_or_update_file",
            RiskLevel::Medium,
            "Write one file in a commit",
            &[("path", "string"), ("content", "string"), ("message", "string"), ("branch", "string"), ("sha", "string")],
        ),
        write(
            "delete_file",
            RiskLevel::High,
            "Delete one file in a commit",
            &[("path", "string"), ("message", "string"), ("branch", "string")],
        ),
        write(
            "create_pull_request",
            RiskLevel::Medium,
            "Open a pull request",
            &[("title", "string"), ("body", "string"), ("head", "string"), ("base", "string"), ("draft", "boolean")],
        ),
        write(
            "merge_pull_request",
            RiskLevel::High,
            "Merge a pull request",
            &[
                ("pr_number", "integer"),
                ("base_branch", "string"),
                ("merge_method", "string"),
                ("commit_title", "string"),
                ("draft", "boolean"),
            ],
        ),
        write("create_repository", RiskLevel::High, "Create a repository", &[("name", "string"), ("private", "boolean")]),
        write("fork_repository", RiskLevel::High, "Fork a repository", &[("organization", "string")]),
        write("transfer_issue", RiskLevel::High, "Move an issue to another repository", &[("issue_number", "integer")]),
    ];
    for action in &mut actions {
        if matches!(action.action.as_str(), "fork_repository" | "transfer_issue" | "create_repository") {
            action.target_parameter = Some("target_repository".to_owned());
        }
    }
    ToolRecord { tool: "github".to_owned(), name: "GitHub".to_owned(), default_risk: RiskLevel::Medium, actions }
}

fn read(name: &str, description: &str, parameters: &[Parameter]) -> ActionRecord {
    action(name, RiskLevel::Low, description, parameters, false)
}

fn write(name: &str, risk: RiskLevel, description: &str, parameters: &[Parameter]) -> ActionRecord {
    action(name, risk, description, parameters, true)
}

fn action(name: &str, risk: RiskLevel, description: &str, parameters: &[Parameter], mutates_state: bool) -> ActionRecord {
    let mut properties = Map::new();
    for (parameter, kind) in parameters {
        let schema = match *kind {
            "strings" => json!({"type": "array", "items": {"type": "string"}}),
            kind => json!({"type": kind}),
        };
        properties.insert((*parameter).to_owned(), schema);
    }
    for parameter in REPOSITORY_PARAMETERS {
        properties.insert(parameter.to_owned(), json!({"type": "string"}));
    }
    ActionRecord {
        action: name.to_owned(),
        description: Some(description.to_owned()),
        risk,
        mutates_state,
        data_access: DataAccess::Internal,
        // A repository may be public, and github.com is not ours: what is written there can leave.
        destination: if mutates_state { Destination::External } else { Destination::Internal },
        target_parameter: None,
        parameters: Some(json!({"type": "object", "properties": properties})),
        approval_required: false,
        default_decision: DefaultDecision::Policy,
    }
}

/// What the pack may name of an action of a covered tool, beyond what its registration declares.
pub(crate) fn built_in_parameters(tool: &str, action: &str) -> Parameters {
    if !TOOLS.contains(&tool) {
        return Parameters::new();
    }
    let usual = github_tool().actions.into_iter().find(|known| known.action == action);
    let mut parameters =
        usual.and_then(|known| known.parameters).as_ref().map(|schema: &Value| parameters_of(schema)).unwrap_or_default();
    for name in REPOSITORY_PARAMETERS {
        parameters.insert(name.to_owned(), Some(ParamType::text()));
    }
    parameters
}
