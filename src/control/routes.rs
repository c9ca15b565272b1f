//! From a method and a path to an operation.
//!
//! Built once from the operations; a request is matched segment by segment, a literal segment before a parameter.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

use crate::api::{self, ApiError, Operation, Request};

/// All operations, by path and method.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

/// The operations of one path.
#[derive(Debug)]
struct Route {
    segments: Vec<Segment>,
    operations: Vec<Operation>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    // In this order: a literal is tried first.
    Literal(&'static str),
    Parameter(&'static str),
}

/// A path or method that no operation has.
#[derive(Debug, PartialEq, Eq)]
pub struct Miss {
    pub error: ApiError,
    /// The value of `Allow`, for 405.
    pub allow: Option<String>,
}

impl From<ApiError> for Miss {
    fn from(error: ApiError) -> Miss {
        Miss { error, allow: None }
    }
}

impl Routes {
    /// Refuses two operations of one method and path, and paths that could never match: mistakes in a `Spec`.
    pub fn new(operations: Vec<Operation>) -> anyhow::Result<Routes> {
        let mut routes: Vec<Route> = Vec::new();
        for operation in operations {
            let spec = operation.spec;
            let Some(path) = spec.path.strip_prefix('/') else {
                bail!("the path \"{}\" does not begin with /", spec.path);
            };
            let segments: Vec<Segment> = path.split('/').map(segment).collect();
            let at = match routes.iter().position(|route| same_paths(&route.segments, &segments)) {
                Some(at) => at,
                None => {
                    routes.push(Route { segments, operations: Vec::new() });
                    routes.len() - 1
                }
            };
            let taken = routes[at].operations.iter().any(|other| other.spec.method == spec.method);
            ensure!(!taken, "two operations answer {} {}", spec.method, spec.path);
            routes[at].operations.push(operation);
        }
        routes.sort_by(|a, b| a.segments.cmp(&b.segments));
        Ok(Routes { routes })
    }

    /// The operation for a request line, and the request with its parameters, without body. HEAD finds GET. Whether the
    /// parameters are good is known, too, but only told to who may call the operation.
    pub fn find(&self, method: &str, target: &str) -> Result<(&Operation, Result<Request, ApiError>), Miss> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path.strip_prefix('/').unwrap_or(path).split('/').map(api::percent_decode);
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        let Some(route) = self.routes.iter().find(|route| route.matches(&segments)) else {
            return Err(ApiError::not_found(format!("there is nothing at {}", path.escape_debug())).into());
        };
        let wanted = if method == "HEAD" { "GET" } else { method };
        let Some(operation) = route.operations.iter().find(|operation| operation.spec.method.name() == wanted) else {
            return Err(route.wrong_method(method));
        };
        Ok((operation, route.request(operation, segments, query)))
    }
}

impl Route {
    fn matches(&self, segments: &[String]) -> bool {
        self.segments.len() == segments.len()
            && self.segments.iter().zip(segments).all(|(own, given)| match own {
                Segment::Literal(text) => text == given,
                Segment::Parameter(_) => !given.is_empty(),
            })
    }

    fn request(&self, operation: &Operation, segments: Vec<String>, query: &str) -> Result<Request, ApiError> {
        let mut request = Request::new(operation.spec);
        request.path = self.parameters(&operation.spec.path_params().collect::<Vec<_>>(), segments)?;
        request.query = api::parse_query(query)?;
        operation.spec.check_query(&request.query)?;
        Ok(request)
    }

    fn parameters(
        &self,
        names: &[&'static str],
        segments: Vec<String>,
    ) -> Result<BTreeMap<&'static str, String>, ApiError> {
        let given = self.segments.iter().zip(segments).filter(|(own, _)| matches!(own, Segment::Parameter(_)));
        let mut parameters = BTreeMap::new();
        for (name, (_, value)) in names.iter().zip(given) {
            api::check_value(name, &value)?;
            parameters.insert(*name, value);
        }
        Ok(parameters)
    }

    fn wrong_method(&self, method: &str) -> Miss {
        let mut allow: Vec<&str> = self.operations.iter().map(|operation| operation.spec.method.name()).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        allow.sort_unstable();
        let allow = allow.join(", ");
        let message = format!("{} is not possible here; allowed: {allow}", method.escape_debug());
        Miss { error: ApiError::new(405, "METHOD_NOT_ALLOWED", message), allow: Some(allow) }
    }
}

fn segment(text: &'static str) -> Segment {
    match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        Some(name) => Segment::Parameter(name),
        None => Segment::Literal(text),
    }
}

/// Whether two paths match the same requests; the names of parameters may differ.
fn same_paths(a: &[Segment], b: &[Segment]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| match (a, b) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Parameter(_), Segment::Parameter(_)) => true,
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Method, Reply, Role, Spec};

    macro_rules! spec {
        ($method:ident $path:literal) => {{
            static SPEC: Spec = Spec {
                command: concat!(stringify!($method), " ", $path),
                method: Method::$method,
                path: $path,
                query: api::PAGE,
                role: Role::Viewer,
                summary: "",
                body: None,
                reply: api::no_reply,
                success: 204,
            };
            Operation::new(&SPEC, |_| Ok(Reply::NoContent))
        }};
    }

    fn routes() -> Routes {
        Routes::new(vec![
            spec!(Get "/rules/{id}"),
            spec!(Delete "/rules/{id}"),
            spec!(Get "/rules"),
            spec!(Post "/rules"),
            spec!(Get "/rules/bulk"),
            spec!(Get "/a/{x}/b/{y}"),
        ])
        .unwrap()
    }

    #[test]
    fn requests_find_their_operation() {
        let check = |method: &str, target: &str, want: &str| {
            let routes = routes();
            let got = match routes.find(method, target) {
                Ok((_, Err(error))) => format!("{} ", error.status),
                Ok((operation, Ok(request))) => {
                    let values: Vec<_> = request.path.values().chain(request.query.values()).cloned().collect();
                    format!("{} [{}]", operation.spec.command, values.join(" "))
                }
                Err(miss) => format!("{} {}", miss.error.status, miss.allow.unwrap_or_default()),
            };
            assert_eq!(got, want, "{method} {target}");
        };
        check("GET", "/rules", "Get /rules []");
        check("HEAD", "/rules", "Get /rules []");
        check("GET", "/rules?limit=3&offset=2", "Get /rules [3 2]");
        check("GET", "/rules?lmit=3", "400 ");
        check("GET", "/rules/bulk", "Get /rules/bulk []");
        check("GET", "/rules/b%75lk", "Get /rules/bulk []");
        check("GET", "/rules/a%2Fb", "Get /rules/{id} [a/b]");
        check("GET", "/a/1/b/2", "Get /a/{x}/b/{y} [1 2]");
        check("GET", "/rules/", "404 ");
        check("GET", "//rules", "404 ");
        check("GET", "/rules/1/2", "404 ");
        check("GET", "/", "404 ");
        check("GET", "/rules/%zz", "400 ");
        check("GET", "/rules/%0a", "400 ");
        check("PUT", "/rules", "405 GET, HEAD, POST");
        check("HEAD", "/rules/bulk/", "404 ");
        check("get", "/rules", "405 GET, HEAD, POST");
        check("DELETE", "/rules/7", "Delete /rules/{id} [7]");
        check("PATCH", "/rules/7", "405 DELETE, GET, HEAD");
    }

    #[test]
    fn mistakes_in_specs_are_found_at_start() {
        let twice = Routes::new(vec![spec!(Get "/a/{x}"), spec!(Get "/a/{y}")]).unwrap_err();
        assert_eq!(twice.to_string(), "two operations answer GET /a/{y}");
        assert!(Routes::new(vec![spec!(Get "a")]).is_err());
    }
}
