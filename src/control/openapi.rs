//! The OpenAPI 3.1 document, made from the specs. Schemas are JSON Schema 2020-12 as it is, which 3.1 takes.

mod examples;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use self::examples::Example;
use crate::api::{self, Method, Operation, ParamKind, Reply, Role, Spec};

/// The operation that serves the document of `specs` and of itself.
pub fn operation(mut specs: Vec<&'static Spec>) -> Operation {
    specs.push(&OPENAPI);
    let document = document(&specs);
    Operation::new(&OPENAPI, move |_| Ok(Reply::Json(document.clone())))
}

static OPENAPI: Spec = Spec {
    command: "openapi",
    method: Method::Get,
    path: "/api-docs/openapi.json",
    query: &[],
    role: Role::Public,
    summary: "This document",
    body: None,
    reply: || json!({"type": "object", "additionalProperties": true}),
    success: 200,
};

/// The document. The order of `specs` does not matter.
pub fn document(specs: &[&Spec]) -> Value {
    let mut schemas = Map::new();
    schemas.insert("Error".to_owned(), error_schema());
    let tags: BTreeSet<&str> = specs.iter().map(|spec| tag_of(spec)).collect();
    let tags: Vec<Value> =
        tags.into_iter().map(|tag| json!({"name": tag, "description": examples::about(tag)})).collect();
    let responses: Map<String, Value> =
        FAILURES.iter().map(|failure| (failure.name.to_owned(), failure.response())).collect();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for spec in specs {
        let method = spec.method.name().to_ascii_lowercase();
        paths.entry(spec.path).or_default().insert(method, operation_object(spec, &mut schemas));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "eBPFsentinel",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        // Wherever the document came from: through a proxy, too.
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}, {"bearer": []}, {"certificate": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key",
                    "description": "A key of `[[auth.api_keys]]`."},
                "bearer": {"type": "http", "scheme": "bearer",
                    "description": "A JWT of the issuer that `[auth.jwt]` or `[auth.oidc]` names, or a key of \
                        `[[auth.api_keys]]`."},
                "certificate": {"type": "mutualTLS",
                    "description": "A client's certificate that `[tls]` maps to a role."},
            },
        },
    })
}

const DESCRIPTION: &str = "The control port of eBPFsentinel, a network security agent.\n\n\
    Each operation names the least role that may call it: viewer reads, operator changes rules (those of its \
    namespaces) and marks their alerts, admin changes the agent. Without `auth.enabled`, whoever reaches the port may do all of it; a caller \
    by the Unix socket is known by its user.\n\n\
    Every failure has the same body, `{\"error\": {\"code\", \"message\"}}`: the code is for programs, the \
    message for people. Unknown keys of a body and unknown query parameters are errors. Lists are paged by `limit` and \
    `offset`. Times are RFC 3339, addresses are strings.";

/// A failure, as the document tells it.
struct Failure {
    status: u16,
    /// Under `components.responses`.
    name: &'static str,
    about: &'static str,
    code: &'static str,
    message: &'static str,
}

impl Failure {
    fn response(&self) -> Value {
        let mut response = json!({
            "description": self.about,
            "content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": {"error": {"code": self.code, "message": self.message}},
            }},
        });
        match self.status {
            429 => {
                response["headers"] = json!({"Retry-After": {
                    "description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1},
                }})
            }
            401 => {
                response["headers"] = json!({"WWW-Authenticate": {
                    "description": "What is asked for", "schema": {"type": "string"},
                }})
            }
            _ => {}
        }
        response
    }

    /// Whether an operation can fail so.
    fn befalls(&self, spec: &Spec) -> bool {
        let (public, changes) = (spec.role == Role::Public, spec.method != Method::Get);
        match self.status {
            401 | 403 | 503 => !public,
            404 => spec.path_params().next().is_some(),
            409 => changes && !public && spec.command != "explain",
            413 => spec.body.is_some(),
            _ => true,
        }
    }
}

const FAILURES: &[Failure] = &[
    Failure {
        status: 400,
        name: "BadRequest",
        about: "The request cannot be what was meant: a parameter or the body is wrong, and the message says where",
        code: "VALIDATION_ERROR",
        message: "unknown query parameter \"lmit\"; known: limit, offset",
    },
    Failure {
        status: 401,
        name: "Unauthorized",
        about: "Nobody is known by these credentials, or none were given",
        code: "AUTHENTICATION_REQUIRED",
        message: "this operation needs an API key or a token",
    },
    Failure {
        status: 403,
        name: "Forbidden",
        about: "The caller is known and may not do this",
        code: "INSUFFICIENT_ROLE",
        message: "this needs the role operator",
    },
    Failure {
        status: 404,
        name: "NotFound",
        about: "There is none of this name",
        code: "RULE_NOT_FOUND",
        message: "there is no rule \"web\"",
    },
    Failure {
        status: 409,
        name: "Conflict",
        about: "The request is right, but not now: the name is taken, or a change waits for its confirmation",
        code: "DUPLICATE_RULE",
        message: "there is a rule \"web\" already",
    },
    Failure {
        status: 413,
        name: "TooLarge",
        about: "The body is longer than is taken",
        code: "BODY_TOO_LARGE",
        message: "the body is larger than the limit",
    },
    Failure {
        status: 429,
        name: "TooManyRequests",
        about: "This client asks too often, or too often with credentials that are wrong",
        code: "RATE_LIMITED",
        message: "too many requests; try again in 3 seconds",
    },
    Failure {
        status: 503,
        name: "Unavailable",
        about: "The part of the agent that would answer is switched off, busy, or gone",
        code: "SERVICE_UNAVAILABLE",
        message: "the rate limiter is off; set ratelimit.enabled = true and restart the agent",
    },
];

/// The group of an operation: the first word of its command.
fn tag_of(spec: &Spec) -> &'static str {
    spec.command.split(' ').next().unwrap_or_default()
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "description": "For programs, as RULE_NOT_FOUND"},
                    "message": {"type": "string", "description": "For people"},
                },
            },
        },
    })
}

fn operation_object(spec: &Spec, schemas: &mut Map<String, Value>) -> Value {
    let mut responses = Map::new();
    responses.insert(spec.success.to_string(), success(spec, schemas));
    for failure in FAILURES.iter().filter(|failure| failure.befalls(spec)) {
        let reference = format!("#/components/responses/{}", failure.name);
        responses.insert(failure.status.to_string(), json!({"$ref": reference}));
    }
    if spec.command == "ready" {
        responses.insert("503".to_owned(), not_ready(spec, schemas));
    }
    responses.insert(
        "default".to_owned(),
        json!({
            "description": "Any other failure",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }),
    );
    let mut object = json!({
        "operationId": spec.command.replace(' ', "-"),
        "summary": spec.summary,
        "description": role_text(spec.role),
        "tags": [tag_of(spec)],
        "x-role": spec.role.name(),
        "responses": responses,
    });
    let parameters: Vec<Value> = spec
        .path_params()
        .map(|name| path_parameter(spec.path, name))
        .chain(spec.query.iter().map(query_parameter))
        .collect();
    if !parameters.is_empty() {
        object["parameters"] = parameters.into();
    }
    if let Some(body) = spec.body {
        let schema = component(body(), schemas);
        let mut content = json!({"schema": schema});
        if let Some(body) = Example::of(spec.command).and_then(|example| example.body()) {
            content["example"] = body;
        }
        object["requestBody"] = json!({"required": true, "content": {"application/json": content}});
    }
    if spec.role == Role::Public {
        object["security"] = json!([]);
    }
    object
}

fn role_text(role: Role) -> String {
    match role {
        Role::Public => "Anybody may ask.".to_owned(),
        role => format!("Role: {}.", role.name()),
    }
}

/// A refusal that carries what readiness carries.
fn not_ready(spec: &Spec, schemas: &mut Map<String, Value>) -> Value {
    let ready = component((spec.reply)(), schemas);
    json!({
        "description": "Something that is enabled does not work",
        "content": {"application/json": {
            "schema": {"allOf": [ready, {"$ref": "#/components/schemas/Error"}]},
            "example": {
                "status": "not_ready", "ebpf_loaded": true, "reasons": ["interface eth0 does not exist"],
                "error": {"code": "SERVICE_UNAVAILABLE", "message": "not ready: interface eth0 does not exist"},
            },
        }},
    })
}

fn success(spec: &Spec, schemas: &mut Map<String, Value>) -> Value {
    let description = match spec.success {
        201 => "Created",
        204 => "Done",
        _ => "OK",
    };
    let mut schema = (spec.reply)();
    if schema.is_null() {
        return json!({"description": description});
    }
    let media = match schema.as_object_mut().and_then(|schema| schema.remove("contentMediaType")) {
        Some(Value::String(media)) => vec![media],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => vec!["application/json".to_owned()],
    };
    let is_list = schema["type"] == "array";
    let mut content = json!({"schema": component(schema, schemas)});
    if let Some(reply) = Example::of(spec.command).and_then(|example| example.reply(is_list)) {
        content["example"] = reply;
    }
    let content: Map<String, Value> = media.into_iter().map(|media| (media, content.clone())).collect();
    json!({"description": description, "content": content})
}

fn path_parameter(path: &str, name: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true,
        "schema": {"type": "string", "minLength": 1, "maxLength": api::VALUE_MAX},
        "example": examples::path_value(path, name),
    })
}

fn query_parameter(param: &api::Param) -> Value {
    let schema = match param.kind {
        ParamKind::Text => json!({"type": "string", "maxLength": api::VALUE_MAX}),
        ParamKind::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        ParamKind::Boolean => json!({"type": "boolean"}),
        ParamKind::Word(words) => json!({"type": "string", "enum": words}),
    };
    json!({"name": param.name, "in": "query", "required": param.required, "description": param.about, "schema": schema})
}

/// Moves a schema's definitions, and itself where it has a name, to `components`; returns what stands in its place.
fn component(mut schema: Value, schemas: &mut Map<String, Value>) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    object.remove("$schema");
    if let Some(Value::Object(definitions)) = object.remove("$defs") {
        for (name, mut definition) in definitions {
            point_to_components(&mut definition);
            keep(name, definition, schemas);
        }
    }
    let title = object.remove("title");
    point_to_components(&mut schema);
    match title {
        // "Array_of_..." and the like are schemars' names for types that have none.
        Some(Value::String(title)) if schema["type"] == "object" => {
            let reference = json!({"$ref": format!("#/components/schemas/{title}")});
            keep(title, schema, schemas);
            reference
        }
        _ => schema,
    }
}

/// # Panics
/// If two types of one name differ: the document would be wrong for one of them. Seen by the first test or start.
fn keep(name: String, schema: Value, schemas: &mut Map<String, Value>) {
    if let Some(other) = schemas.get(&name) {
        assert_eq!(*other, schema, "two types of the API are called {name}");
    }
    schemas.insert(name, schema);
}

fn point_to_components(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", "#/components/schemas/");
            }
            object.values_mut().for_each(point_to_components);
        }
        Value::Array(items) => items.iter_mut().for_each(point_to_components),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::agent;

    #[test]
    fn every_reference_has_its_component() {
        let document = document(agent::SPECS);
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(reference)) = object.get("$ref") {
                        let pointer = reference.strip_prefix('#').expect("references stay in the document");
                        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
                    }
                    object.values().for_each(|value| walk(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, document)),
                _ => {}
            }
        }
        walk(&document, &document);
        assert!(!document.to_string().contains("$defs"));
    }

    #[test]
    fn operations_tell_how_they_fail() {
        let document = document(agent::SPECS);
        let statuses = |path: &str, method: &str| {
            let responses = document["paths"][path][method]["responses"].as_object().unwrap();
            responses.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(statuses("/healthz", "get"), "200 400 429 default");
        assert_eq!(statuses("/readyz", "get"), "200 400 429 503 default");
        assert_eq!(statuses("/api/v1/agent/status", "get"), "200 400 401 403 429 503 default");
        assert_eq!(statuses("/api/v1/config/reload", "post"), "200 400 401 403 409 429 503 default");
        assert_eq!(document["paths"]["/healthz"]["get"]["security"], json!([]));
        let reload = &document["paths"]["/api/v1/config/reload"]["post"];
        assert_eq!((reload.get("security"), &reload["description"]), (None, &json!("Role: admin.")));
    }
}
