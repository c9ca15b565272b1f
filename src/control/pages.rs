//! Swagger UI: the API's documentation as a page that can call it, from files in the binary; `agent.swagger_ui`.
//!
//! The page and its few lines of script are ours; the library and its style come with the crate. Nothing is fetched
//! from elsewhere, no script stands in the page, and [`CONTENT_POLICY`] has the browser hold to that.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use flate2::read::GzDecoder;

use crate::api::{self, Method, Operation, Reply, Role, Spec};

/// `Content-Security-Policy` of every answer: what it shows comes from here, and no other page frames it. Styles may
/// stand in elements, as the library writes them.
pub const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// More than any file of the library, unpacked.
const FILE_BYTES_MAX: u64 = 16 << 20;

const PAGE: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"UTF-8\">
<title>eBPFsentinel API</title>
<link rel=\"icon\" href=\"data:,\">
<link rel=\"stylesheet\" href=\"/swagger-ui/swagger-ui.css\">
</head>
<body>
<div id=\"swagger-ui\"></div>
<script src=\"/swagger-ui/swagger-ui-bundle.js\"></script>
<script src=\"/swagger-ui/start.js\"></script>
</body>
</html>
";

/// `validatorUrl` would send the document to a public service. Credentials are not kept by the browser.
const START: &str = "\"use strict\";
window.ui = SwaggerUIBundle({
  url: \"/api-docs/openapi.json\",
  dom_id: \"#swagger-ui\",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  queryConfigEnabled: false,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
";

const fn page(path: &'static str) -> Spec {
    Spec {
        command: "swagger-ui",
        method: Method::Get,
        path,
        query: &[],
        role: Role::Public,
        summary: "Swagger UI",
        body: None,
        reply: api::text_reply,
        success: 200,
    }
}

static INDEX: Spec = page("/swagger-ui/");
static BARE: Spec = page("/swagger-ui");
static SCRIPT: Spec = page("/swagger-ui/start.js");
static STYLE: Spec = page("/swagger-ui/swagger-ui.css");
static BUNDLE: Spec = page("/swagger-ui/swagger-ui-bundle.js");

/// The operations that serve the page. They belong to no document: nobody calls them but a browser.
///
/// # Errors
/// The files of the library are not in the binary as expected.
pub fn operations() -> Result<Vec<Operation>> {
    let (html, script, style) =
        ("text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8");
    Ok(vec![
        file(&INDEX, html, PAGE.to_owned()),
        file(&BARE, html, PAGE.to_owned()),
        file(&SCRIPT, script, START.to_owned()),
        file(&STYLE, style, library_file("swagger-ui.css")?),
        file(&BUNDLE, script, library_file("swagger-ui-bundle.js")?),
    ])
}

fn file(spec: &'static Spec, content_type: &'static str, body: String) -> Operation {
    Operation::new(spec, move |_| Ok(Reply::Text { content_type, body: body.clone() }))
}

/// A file of the library as text.
fn library_file(name: &str) -> Result<String> {
    let found = utoipa_swagger_ui::serve(name, Arc::new(utoipa_swagger_ui::Config::from("/api-docs/openapi.json")))
        .map_err(|error| anyhow!("{error}"))?
        .with_context(|| format!("Swagger UI has no file {name}"))?;
    let mut text = String::new();
    if found.gzpipped {
        GzDecoder::new(&*found.bytes)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(|| format!("unpacking {name}"))?;
    } else {
        text = String::from_utf8(found.bytes.into_owned()).with_context(|| format!("reading {name}"))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_that_are_served() {
        let operations = operations().unwrap();
        let paths: Vec<&str> = operations.iter().map(|operation| operation.spec.path).collect();
        let named: Vec<&str> = PAGE.split('"').filter(|text| text.starts_with('/')).collect();
        assert_eq!(named.len(), 3);
        assert!(named.iter().all(|path| paths.contains(path)), "{named:?} of {paths:?}");
        // No script in the page itself.
        assert_eq!(PAGE.matches("<script").count(), PAGE.matches("\"></script>").count());
    }

    #[test]
    fn the_library_is_whole() {
        assert!(library_file("swagger-ui-bundle.js").unwrap().contains("SwaggerUIBundle"));
        assert!(library_file("swagger-ui.css").unwrap().contains(".swagger-ui"));
        assert!(library_file("no-such.js").is_err());
    }
}
