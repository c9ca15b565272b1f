//! The OpenAPI 3.1 document, made from the specs. Schemas are JSON Schema 2020-12 as it is, which 3.1 takes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

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
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas},
    })
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
    responses.insert(
        "default".to_owned(),
        json!({
            "description": "Any failure",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }),
    );
    let mut object = json!({
        "operationId": spec.command.replace(' ', "-"),
        "summary": spec.summary,
        "tags": [spec.command.split(' ').next().unwrap_or_default()],
        "x-role": spec.role.name(),
        "responses": responses,
    });
    let parameters: Vec<Value> =
        spec.path_params().map(path_parameter).chain(spec.query.iter().map(query_parameter)).collect();
    if !parameters.is_empty() {
        object["parameters"] = parameters.into();
    }
    if let Some(body) = spec.body {
        let schema = component(body(), schemas);
        object["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    if spec.role == Role::Public {
        object["security"] = json!([]);
    }
    object
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
        Some(Value::String(media)) => media,
        _ => "application/json".to_owned(),
    };
    json!({"description": description, "content": {media: {"schema": component(schema, schemas)}}})
}

fn path_parameter(name: &'static str) -> Value {
    json!({
        "name": name, "in": "path", "required": true,
        "schema": {"type": "string", "minLength": 1, "maxLength": api::VALUE_MAX},
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
}
