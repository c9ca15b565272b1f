//! The OpenAPI document, tried on the agent that serves it: by schemathesis, which asks what the document allows and
//! much that it does not, and by a browser, in which Swagger UI is opened and used.

use std::process::Command;

use ebpfsentinel::api::Method;
use ebpfsentinel::client::{Client, Endpoint};
use ebpfsentinel::lab::Process;
use serde_json::{Value, json};

use super::support::{Lab, config, rule, wait_for, wait_until};

const SCHEMATHESIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/schemathesis");

/// An agent with all components, so that nothing answers that it is switched off.
fn everything(agent: &str) -> String {
    let firewall = config(agent, "mode = \"block\"", &[rule("ssh", 10, "allow", "protocol = \"tcp\"\ndst_port = 22")]);
    format!("{firewall}\n[ratelimit]\nenabled = true\n[l7]\nenabled = true\n")
}

#[test]
fn no_request_breaks_the_agent_or_its_document() {
    // Outside of the namespace, which has no way to a registry.
    let setup = Command::new(SCHEMATHESIS).arg("--setup").output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let lab = Lab::new();
    let agent = lab.start(&everything(""));
    let run = lab.host.command(SCHEMATHESIS).unwrap().arg("http://127.0.0.1:8080").output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    // Not by having asked nothing.
    let document = lab.get("/api-docs/openapi.json");
    let methods = document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len());
    let streams = document["paths"].as_object().unwrap().keys().filter(|path| path.ends_with("/stream")).count();
    // It leaves out the operation that the document came from.
    let tested = format!("Tested: {}", methods.sum::<usize>() - streams - 1);
    assert!(said.contains(&tested), "no {tested:?} in\n{said}");
    let heard = agent.stop();
    assert!(!heard.contains("panicked"), "{heard}");
}

/// A browser with a driver, in a pid namespace of their own, so that all of it ends with this.
struct Browser {
    _driver: Process,
    client: Client,
    session: String,
}

impl Browser {
    fn start(lab: &Lab, profile: &std::path::Path) -> Browser {
        let mut command = lab.host.command("unshare").unwrap();
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "chromedriver", "--port=9515"]);
        let driver = Process::start(&mut command).unwrap();
        let client = Client::new(Endpoint { host: "127.0.0.1".to_owned(), port: 9515 }, None);
        wait_until("the driver listens", || {
            let answer = lab.host.run(|| client.send(Method::Get, "/status", None)).unwrap();
            answer.is_ok_and(|answer| answer.status == 200)
        });
        let mut browser = Browser { _driver: driver, client, session: String::new() };
        let profile = format!("--user-data-dir={}", profile.display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,1600",
            &profile,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.ask(lab, Method::Post, "/session", Some(wanted));
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// A command of WebDriver; the value that it answers.
    fn ask(&self, lab: &Lab, method: Method, path: &str, body: Option<Value>) -> Value {
        let target = format!("{}{path}", self.session);
        let answer = lab.host.run(|| self.client.send(method, &target, body.as_ref())).unwrap().unwrap();
        let mut answer: Value = serde_json::from_str(&answer.body).unwrap();
        let value = answer["value"].take();
        assert!(value.get("error").is_none_or(Value::is_null), "{method} {path}: {value}");
        value
    }

    fn run(&self, lab: &Lab, script: &str) -> Value {
        self.ask(lab, Method::Post, "/execute/sync", Some(json!({"script": script, "args": []})))
    }

    /// Waits for an element and clicks on it.
    fn click(&self, lab: &Lab, selector: &str) {
        let found = wait_for(&format!("the page has {selector}"), || {
            let body = json!({"using": "css selector", "value": selector});
            let found = self.ask(lab, Method::Post, "/elements", Some(body));
            let first = found.as_array()?.first()?.as_object()?.values().next()?.as_str()?.to_owned();
            Some(first)
        });
        self.run(lab, &format!("document.querySelector({selector:?}).scrollIntoView({{block: 'center'}})"));
        self.ask(lab, Method::Post, &format!("/element/{found}/click"), Some(json!({})));
    }

    /// Executes an operation as a visitor of the page would; what the page shows of the answer.
    fn execute(&self, lab: &Lab, id: &str) -> String {
        self.click(lab, &format!("#{id} .opblock-summary-control"));
        self.click(lab, &format!("#{id} .try-out__btn"));
        self.click(lab, &format!("#{id} .execute"));
        wait_for(&format!("the page shows the answer of {id}"), || {
            let script = format!(
                "const e = document.querySelector('#{id} .live-responses-table tbody'); return e ? e.innerText : null"
            );
            self.run(lab, &script).as_str().map(str::to_owned)
        })
    }
}

#[test]
fn operations_are_executed_from_a_browser() {
    let lab = Lab::new();
    let agent = lab.start(&everything("swagger_ui = true"));
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(&lab, profile.path());
    let page = json!({"url": "http://127.0.0.1:8080/swagger-ui/"});
    browser.ask(&lab, Method::Post, "/url", Some(page));
    let shown = browser.execute(&lab, "operations-status-status");
    assert!(shown.contains("200") && shown.contains("\"uptime_seconds\""), "{shown}");
    // The example of the document is a rule that is taken.
    let shown = browser.execute(&lab, "operations-firewall-firewall-add");
    assert!(shown.contains("201") && shown.contains("\"web\""), "{shown}");
    assert_eq!(lab.rule_ids(), ["ssh", "web"]);

    let picture = browser.ask(&lab, Method::Get, "/screenshot", None);
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("swagger-ui.png");
    let bytes = data_encoding::BASE64.decode(picture.as_str().unwrap().as_bytes()).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{}: {} bytes", file.display(), bytes.len());

    // Nothing that the page tried was refused by its own policy, and nothing was looked for elsewhere.
    let log = browser.ask(&lab, Method::Post, "/se/log", Some(json!({"type": "browser"})));
    let severe =
        |entry: &&Value| entry["level"] == "SEVERE" || entry["message"].to_string().contains("Security Policy");
    let complaints: Vec<&Value> = log.as_array().unwrap().iter().filter(severe).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let resources = browser.run(&lab, "return performance.getEntriesByType('resource').map(entry => entry.name)");
    let outside = |name: &&Value| !name.as_str().unwrap().starts_with("http://127.0.0.1:8080/");
    assert_eq!(resources.as_array().unwrap().iter().filter(outside).count(), 0, "{resources}");
    // The policy holds: a script in the page does not run.
    browser.run(
        &lab,
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)",
    );
    assert_eq!(browser.run(&lab, "return window.ran === undefined"), true);
    browser.ask(&lab, Method::Delete, "", None);
    agent.stop();
}

#[test]
fn without_the_switch_there_is_no_page() {
    let lab = Lab::new();
    let agent = lab.start(&everything(""));
    assert_eq!(lab.send(Method::Get, "/swagger-ui/", None).status, 404);
    assert_eq!(lab.get("/api-docs/openapi.json")["openapi"], "3.1.0");
    agent.stop();
}
