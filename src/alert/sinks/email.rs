//! E-mail: alerts by SMTP, one mail for one alert, or a digest of those that came meanwhile.

use std::path::Path;
use std::time::Duration;

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{SmtpTransport, Transport};

use super::notice::{shown, text_of};
use super::{Deliver, Failure, Notice};
use crate::alert::Severity;
use crate::outbound::certificates;
use crate::secret::Secret;

/// Longest subject, in characters.
const SUBJECT_MAX: usize = 160;
/// Longest text of a field in a mail, in characters.
const FIELD_MAX: usize = 1000;

/// How a mail travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// In the clear at first, and not at all unless the server goes over to TLS.
    StartTls,
    /// TLS from the first byte.
    Tls,
    /// In the clear.
    None,
}

/// The server that mails are given to.
#[derive(Clone, Debug)]
pub struct Server<'c> {
    /// Name or address.
    pub host: &'c str,
    /// Its port.
    pub port: u16,
    /// How.
    pub encryption: Encryption,
    /// Name and password, if it asks for them.
    pub login: Option<(&'c str, &'c Secret)>,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<&'c Path>,
    /// For connecting, and for each answer.
    pub timeout: Duration,
}

/// Mails alerts.
pub struct EmailSink {
    transport: SmtpTransport,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl EmailSink {
    /// A sink; `to` is not empty.
    pub fn new(server: &Server<'_>, from: Mailbox, to: Vec<Mailbox>) -> Result<EmailSink, String> {
        let tls = match server.encryption {
            Encryption::None => Tls::None,
            Encryption::StartTls => Tls::Required(tls(server)?),
            Encryption::Tls => Tls::Wrapper(tls(server)?),
        };
        let mut transport =
            SmtpTransport::builder_dangerous(server.host).port(server.port).tls(tls).timeout(Some(server.timeout));
        if let Some((name, password)) = server.login {
            transport = transport.credentials(Credentials::new(name.to_owned(), password.expose().to_owned()));
        }
        Ok(EmailSink { transport: transport.build(), from, to })
    }

    fn send(&self, to: &[Mailbox], notices: &[Notice]) -> Result<(), Failure> {
        let mut message = Message::builder()
            .from(self.from.clone())
            .message_id(None)
            .subject(subject(notices))
            // So that no holiday greeting comes back (RFC 3834).
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            .header(ContentType::TEXT_PLAIN);
        for mailbox in to {
            message = message.to(mailbox.clone());
        }
        let message = message.body(body(notices)).map_err(|error| Failure::refused(error.to_string()))?;
        self.transport.send(&message).map(drop).map_err(|error| {
            let text = with_causes(&error);
            if error.is_permanent() { Failure::refused(text) } else { Failure::retry(text) }
        })
    }
}

impl Deliver for EmailSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        let failure = match self.send(&self.to, batch) {
            Err(failure) if failure.kind == super::FailureKind::Refused && self.to.len() > 1 => failure,
            result => return result,
        };
        // One address that is no more must not keep the others from hearing.
        let mut refused = Vec::new();
        let mut last = failure;
        for mailbox in &self.to {
            if let Err(failure) = self.send(std::slice::from_ref(mailbox), batch) {
                refused.push(mailbox.email.to_string());
                last = failure;
            }
        }
        if refused.len() == self.to.len() {
            return Err(last);
        }
        let refused = refused.join(", ");
        log::error!(alerts = batch.len(); "a mail did not reach {refused}: {}", last.message);
        Ok(())
    }
}

fn tls(server: &Server<'_>) -> Result<TlsParameters, String> {
    let mut parameters = TlsParameters::builder(server.host.to_owned());
    for certificate in server.ca_file.map(certificates).transpose()?.unwrap_or_default() {
        let certificate = Certificate::from_der(certificate.to_vec()).map_err(|error| with_causes(&error))?;
        parameters = parameters.add_root_certificate(certificate);
    }
    parameters.build().map_err(|error| with_causes(&error))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    shown(&text).into_owned()
}

fn subject(notices: &[Notice]) -> String {
    let text = match notices {
        [one] => {
            let fields = one.fields();
            let message = fields.iter().find(|(name, _)| *name == "message").map(|(_, field)| text_of(field));
            format!("[eBPFsentinel] {}: {}", one.severity().name(), message.unwrap_or_default())
        }
        many => {
            let worst = many.iter().map(Notice::severity).max().unwrap_or(Severity::Low);
            format!("[eBPFsentinel] {} alerts, the gravest {}", many.len(), worst.name())
        }
    };
    cut(&shown(&text), SUBJECT_MAX)
}

fn body(notices: &[Notice]) -> String {
    let mut out = String::new();
    if notices.len() > 1 {
        for severity in [Severity::Critical, Severity::High, Severity::Medium, Severity::Low] {
            let count = notices.iter().filter(|notice| notice.severity() == severity).count();
            if count > 0 {
                out.push_str(&format!("{count} {}\r\n", severity.name()));
            }
        }
    }
    for notice in notices {
        if !out.is_empty() {
            out.push_str("\r\n");
        }
        for (name, field) in notice.fields().iter().filter(|(name, _)| *name != "timestamp_ns") {
            out.push_str(&format!("{name}: {}\r\n", cut(&shown(&text_of(field)), FIELD_MAX)));
        }
    }
    out
}

fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::alert::Alert;
    use crate::component::Component;

    fn notice(severity: Severity, message: &str) -> Notice {
        Notice::new(Arc::new(Alert::new(Component::L7, severity, "r", "log", 1, message)))
    }

    #[test]
    fn nothing_of_the_wire_becomes_a_header() {
        let evil = "x\r\nBcc: all@example.org\r\n\r\nbody\u{0}";
        let subject = subject(&[notice(Severity::High, evil)]);
        assert_eq!(subject, "[eBPFsentinel] high: x\\u{d}\\u{a}Bcc: all@example.org\\u{d}\\u{a}\\u{d}\\u{a}body\\u{0}");
        let message = Message::builder()
            .from("a@example.org".parse().unwrap())
            .to("b@example.org".parse().unwrap())
            .subject(subject)
            .body(body(&[notice(Severity::High, evil)]));
        let bytes = message.unwrap().formatted();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
        assert!(body.lines().all(|line| !line.starts_with("Bcc")), "{body}");
    }

    #[test]
    fn a_digest_says_how_many_and_how_grave() {
        let notices =
            [notice(Severity::Low, "a"), notice(Severity::Critical, "b"), notice(Severity::Low, &"ü".repeat(2000))];
        assert_eq!(subject(&notices), "[eBPFsentinel] 3 alerts, the gravest critical");
        let body = body(&notices);
        assert!(body.starts_with("1 critical\r\n2 low\r\n\r\nid: "), "{body}");
        assert!(body.contains("message: a\r\n") && body.contains(&format!("message: {}...\r\n", "ü".repeat(1000))));
        let long = subject(&[notice(Severity::Low, &"ü".repeat(500))]);
        assert_eq!(long.chars().count(), SUBJECT_MAX + 3);
    }
}
