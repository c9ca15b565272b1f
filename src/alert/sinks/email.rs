//! E-mail: alerts by SMTP, one mail for one alert, or a digest of those that came meanwhile.
//!
//! One mail goes to all recipients, of whom the server may take some and not others. Those that it takes later are
//! tried again, and only they; those that it refuses are counted. (The transport of the library sends to all or
//! nobody.)

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{Certificate, SmtpConnection, Tls, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::response::Response;

use super::notice::{shown, text_of};
use super::outlet::Losses;
use super::{Deliver, Failure, Notice};
use crate::alert::Severity;
use crate::outbound::certificates;
use crate::secret::Secret;

/// Longest subject, in characters.
const SUBJECT_MAX: usize = 160;
/// Longest text of a field in a mail, in characters.
const FIELD_MAX: usize = 1000;
/// So long a mail that others have is tried again for those whose server says "later", while new alerts wait:
/// greylisting ends sooner, and a mailbox that is full does not.
const LATE_FOR: Duration = Duration::from_secs(900);

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

/// The server, and how a connection to it begins.
struct Link {
    host: String,
    port: u16,
    tls: Tls,
    login: Option<Credentials>,
    hello: ClientId,
    timeout: Duration,
}

/// Mails alerts.
pub struct EmailSink {
    link: Link,
    from: Mailbox,
    to: Vec<Mailbox>,
    debts: Debts,
    losses: Losses,
}

impl EmailSink {
    /// A sink; `to` is not empty.
    pub fn new(server: &Server<'_>, from: Mailbox, to: Vec<Mailbox>, losses: Losses) -> Result<EmailSink, String> {
        let tls = match server.encryption {
            Encryption::None => Tls::None,
            Encryption::StartTls => Tls::Required(tls(server)?),
            Encryption::Tls => Tls::Wrapper(tls(server)?),
        };
        let login = |(name, password): (&str, &Secret)| Credentials::new(name.to_owned(), password.expose().to_owned());
        let link = Link {
            host: server.host.to_owned(),
            port: server.port,
            tls,
            login: server.login.map(login),
            hello: ClientId::default(),
            timeout: server.timeout,
        };
        Ok(EmailSink { link, from, to, debts: Debts::default(), losses })
    }

    /// Sends alerts as one mail to some, by their places, and says what became of each.
    fn send(&self, notices: &[Notice], to: &[usize]) -> Result<Vec<Verdict>, Failure> {
        let mut message = Message::builder()
            .from(self.from.clone())
            .message_id(None)
            .subject(subject(notices))
            // So that no holiday greeting comes back (RFC 3834).
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            .header(ContentType::TEXT_PLAIN);
        for mailbox in &self.to {
            message = message.to(mailbox.clone());
        }
        let message = message.body(body(notices)).map_err(|error| Failure::refused(error.to_string()))?;
        let to: Vec<Address> = to.iter().map(|at| self.to[*at].email.clone()).collect();
        let mut connection = self.link.connect()?;
        let verdicts = talk(&mut connection, &self.from.email, &to, &message.formatted());
        connection.abort();
        verdicts
    }

    /// Sends alerts of which the same recipients have not heard.
    fn tell(&mut self, notices: &[Notice], keys: &[Key]) -> Result<(), Failure> {
        let to = match self.debts.of(&keys[0]) {
            Some(to) => to.to_vec(),
            None => (0..self.to.len()).collect(),
        };
        let verdicts = self.send(notices, &to)?;
        let (missed, result) = self.debts.weigh(keys, &to, verdicts, Instant::now());
        for Missed { at, reason, why } in missed {
            self.losses.add(reason, notices.len());
            log::error!(alerts = notices.len(); "a mail did not reach {}: {why}", self.to[at].email);
        }
        result
    }
}

impl Deliver for EmailSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        let keys: Vec<Key> = batch.iter().map(key_of).collect();
        self.debts.begin(&keys);
        let mut delivered = 0;
        while delivered < batch.len() {
            let alike = keys[delivered..]
                .iter()
                .take_while(|key| self.debts.of(key) == self.debts.of(&keys[delivered]))
                .count();
            let some = delivered..delivered + alike;
            self.tell(&batch[some.clone()], &keys[some]).map_err(|failure| Failure { delivered, ..failure })?;
            delivered += alike;
        }
        Ok(())
    }
}

impl Link {
    fn connect(&self) -> Result<SmtpConnection, Failure> {
        let at_once = if let Tls::Wrapper(parameters) = &self.tls { Some(parameters) } else { None };
        let address = (self.host.as_str(), self.port);
        let mut connection = SmtpConnection::connect(address, Some(self.timeout), &self.hello, at_once, None)
            .map_err(|error| failure_of(&error))?;
        if let Tls::Required(parameters) = &self.tls {
            connection.starttls(parameters, &self.hello).map_err(|error| failure_of(&error))?;
        }
        let Some(login) = &self.login else { return Ok(connection) };
        connection.auth(DEFAULT_MECHANISMS, login).map_err(|error| match error.status() {
            // What the server says to it is not shown: it may repeat the password.
            Some(code) => Failure::retry(format!("the server refuses the login ({code})")),
            None => failure_of(&error),
        })?;
        Ok(connection)
    }
}

/// One mail. A server may take it for some and not for others.
fn talk(
    connection: &mut SmtpConnection,
    from: &Address,
    to: &[Address],
    message: &[u8],
) -> Result<Vec<Verdict>, Failure> {
    let is_ascii = |address: &Address| AsRef::<str>::as_ref(address).is_ascii();
    let mut options = Vec::new();
    if !is_ascii(from) || !to.iter().all(is_ascii) {
        if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            return Err(Failure::retry("the server takes no address that is not ASCII"));
        }
        options.push(MailParameter::SmtpUtfEight);
    }
    connection.command(Mail::new(Some(from.clone()), options)).map_err(|error| failure_of(&error))?;
    let mut verdicts = Vec::with_capacity(to.len());
    for address in to {
        verdicts.push(Verdict::of(connection.command(Rcpt::new(address.clone(), Vec::new())))?);
    }
    if !verdicts.contains(&Verdict::Taken) {
        return Ok(verdicts);
    }
    // Its text is all ASCII: what is not is encoded.
    let taken = Verdict::of(connection.command(Data).and_then(|_| connection.message(message)))?;
    for verdict in verdicts.iter_mut().filter(|verdict| **verdict == Verdict::Taken) {
        *verdict = taken.clone();
    }
    Ok(verdicts)
}

/// Of what was said before a recipient and the mail are named: even a 5xx is about the server, the login or the sender,
/// and says nothing of the alerts. They wait until somebody has mended that.
fn failure_of(error: &Error) -> Failure {
    Failure::retry(with_causes(error))
}

/// What the server says to a mail for one recipient, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    Later(String),
    Refused(String),
}

impl Verdict {
    /// The error is that there is no answer.
    fn of(answer: Result<Response, Error>) -> Result<Verdict, Failure> {
        match answer {
            Ok(_) => Ok(Verdict::Taken),
            Err(error) if error.is_transient() => Ok(Verdict::Later(with_causes(&error))),
            Err(error) if error.is_permanent() => Ok(Verdict::Refused(with_causes(&error))),
            Err(error) => Err(failure_of(&error)),
        }
    }
}

/// Names one telling of an alert: its id and revision.
type Key = String;

fn key_of(notice: &Notice) -> Key {
    let fields = notice.fields();
    let text = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).map(|(_, field)| text_of(field));
    format!("{}.{}", text("id").unwrap_or_default(), text("revision").unwrap_or_default())
}

/// Mails that some have and that others are still to get. They are the first of what waits, and all else waits for
/// them: so nobody waits for the same recipient for longer than [`LATE_FOR`].
#[derive(Debug, Default)]
struct Debts {
    /// To whom an alert is still to go, by their places.
    owed: HashMap<Key, Vec<usize>>,
    /// When the first of these was not taken.
    since: Option<Instant>,
    /// Whom nobody waits for, until a mail is taken for them.
    late: BTreeSet<usize>,
}

/// A recipient who does not get a mail, by his place, and why.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    at: usize,
    reason: &'static str,
    why: String,
}

impl Debts {
    /// These are to be sent. If the first is owed to nobody, what was owed was given up.
    fn begin(&mut self, keys: &[Key]) {
        if keys.first().is_none_or(|key| !self.owed.contains_key(key)) {
            self.owed.clear();
            self.since = None;
        }
    }

    /// Whom an alert is owed to, if others have it.
    fn of(&self, key: &Key) -> Option<&[usize]> {
        self.owed.get(key).map(Vec::as_slice)
    }

    /// Who does not get these alerts, and what is to be done about the others.
    fn weigh(
        &mut self,
        keys: &[Key],
        to: &[usize],
        verdicts: Vec<Verdict>,
        now: Instant,
    ) -> (Vec<Missed>, Result<(), Failure>) {
        let others_have_it = keys.iter().any(|key| self.owed.contains_key(key)) || verdicts.contains(&Verdict::Taken);
        if !others_have_it {
            // The outlet tries again, or counts them: nobody has them.
            let later = verdicts.iter().find(|verdict| matches!(verdict, Verdict::Later(_)));
            return match later.or(verdicts.last()) {
                Some(Verdict::Later(why)) => (Vec::new(), Err(Failure::retry(why))),
                Some(Verdict::Refused(why)) => (Vec::new(), Err(Failure::refused(why))),
                _ => (Vec::new(), Ok(())),
            };
        }
        let (mut missed, mut later) = (Vec::new(), Vec::new());
        for (&at, verdict) in to.iter().zip(verdicts) {
            match verdict {
                Verdict::Taken => {
                    self.late.remove(&at);
                }
                Verdict::Refused(why) => missed.push(Missed { at, reason: "recipient_refused", why }),
                Verdict::Later(why) if self.late.contains(&at) => {
                    missed.push(Missed { at, reason: "recipient_late", why });
                }
                Verdict::Later(why) => later.push((at, why)),
            }
        }
        if let Some((_, why)) = later.first() {
            let why = why.clone();
            if now.duration_since(*self.since.get_or_insert(now)) < LATE_FOR {
                let places: Vec<usize> = later.iter().map(|(at, _)| *at).collect();
                keys.iter().for_each(|key| drop(self.owed.insert(key.clone(), places.clone())));
                return (missed, Err(Failure::retry(format!("{} of {} recipients: {why}", places.len(), to.len()))));
            }
            self.late.extend(later.iter().map(|(at, _)| *at));
            missed.extend(later.into_iter().map(|(at, why)| Missed { at, reason: "recipient_late", why }));
        }
        keys.iter().for_each(|key| drop(self.owed.remove(key)));
        if self.owed.is_empty() {
            self.since = None;
        }
        (missed, Ok(()))
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
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;
    use crate::alert::Alert;
    use crate::alert::sinks::FailureKind;
    use crate::component::Component;
    use crate::metrics::Metrics;

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

    /// What a mail ends with when a server greets with the first of these and answers each line with the next.
    fn told(answers: &'static [&'static str], login: bool, to: &str) -> FailureKind {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in answers {
                // The client may have gone.
                let _ = stream.write_all(format!("{answer}\r\n").as_bytes());
                let _ = lines.next();
            }
        });
        let password = Secret::new("s3cret");
        let server_of = Server {
            host: "127.0.0.1",
            port,
            encryption: Encryption::None,
            login: login.then_some(("agent", &password)),
            ca_file: None,
            timeout: Duration::from_secs(20),
        };
        let losses = Losses::new("mail", &Metrics::new());
        let from = "agent@example.org".parse().unwrap();
        let mut sink = EmailSink::new(&server_of, from, vec![to.parse().unwrap()], losses).unwrap();
        let failure = sink.deliver(&[notice(Severity::High, "m")]).unwrap_err();
        server.join().unwrap();
        assert!(!failure.message.contains("s3cret"), "{failure:?}");
        failure.kind
    }

    #[test]
    fn for_good_is_what_is_said_of_the_recipient_or_of_the_mail() {
        const TO: &str = "soc@example.org";
        const HELLO: &str = "250-here\r\n250 AUTH PLAIN";
        let again = FailureKind::Retry(None);
        for (answers, login, to, want) in [
            (&["554 no service"][..], false, TO, again),
            (&["220 here", "550 not you", "550 not you"], false, TO, again),
            (&["220 here", HELLO, "535 s3cret is wrong"], true, TO, again),
            (&["220 here", HELLO, "454 not now"], true, TO, again),
            (&["220 here", HELLO, "530 log in first"], false, TO, again),
            (&["220 here", HELLO], false, "sök@example.org", again),
            (&["220 here", HELLO, "250 ok", "450 later"], false, TO, again),
            (&["220 here", HELLO, "250 ok", "550 nobody"], false, TO, FailureKind::Refused),
            (&["220 here", HELLO, "250 ok", "250 ok", "554 no"], false, TO, FailureKind::Refused),
        ] {
            assert_eq!(told(answers, login, to), want, "{answers:?} {to}");
        }
    }

    #[test]
    fn who_is_late_is_waited_for_once_and_not_for_ever() {
        let keys: Vec<Key> = ["1.", "2.", "3."].map(str::to_owned).to_vec();
        let later = || Verdict::Later("full".into());
        let refused = || Verdict::Refused("gone".into());
        let missed = |at, reason, why: &str| Missed { at, reason, why: why.into() };
        let (mut debts, start) = (Debts::default(), Instant::now());
        // Nobody has it: that is not for here.
        let (none, result) = debts.weigh(&keys, &[0, 1], vec![refused(), later()], start);
        assert_eq!((none, result), (vec![], Err(Failure::retry("full"))));
        let (none, result) = debts.weigh(&keys, &[0, 1], vec![refused(), refused()], start);
        assert_eq!((none, result), (vec![], Err(Failure::refused("gone"))));
        assert_eq!(debts.of(&keys[0]), None);
        // One has it, two are late, one is refused.
        let verdicts = vec![Verdict::Taken, later(), refused(), later()];
        let (who, result) = debts.weigh(&keys[..2], &[0, 1, 2, 3], verdicts, start);
        assert_eq!(who, [missed(2, "recipient_refused", "gone")]);
        assert_eq!(result, Err(Failure::retry("2 of 4 recipients: full")));
        assert_eq!(keys.iter().map(|key| debts.of(key)).collect::<Vec<_>>(), [Some(&[1, 3][..]), Some(&[1, 3]), None]);
        // The probe of one alert: one recipient less.
        debts.begin(&keys[..1]);
        let (who, result) = debts.weigh(&keys[..1], &[1, 3], vec![Verdict::Taken, later()], start + LATE_FOR / 2);
        assert!(who.is_empty() && result.is_err());
        assert_eq!([debts.of(&keys[0]), debts.of(&keys[1])], [Some(&[3][..]), Some(&[1, 3])]);
        let (who, result) = debts.weigh(&keys[..1], &[3], vec![later()], start + LATE_FOR);
        assert_eq!((who, result), (vec![missed(3, "recipient_late", "full")], Ok(())));
        // From now on nobody waits for him, but for another.
        let (who, result) = debts.weigh(&keys[1..2], &[1, 3], vec![Verdict::Taken, later()], start + LATE_FOR);
        assert_eq!((who, result), (vec![missed(3, "recipient_late", "full")], Ok(())));
        debts.begin(&keys[2..]);
        let (who, result) = debts.weigh(&keys[2..], &[0, 3], vec![later(), Verdict::Taken], start + 2 * LATE_FOR);
        assert!(who.is_empty() && result.is_err());
        // Given up by the outlet, which goes on with another alert; and who was late is waited for again.
        debts.begin(&keys[..1]);
        assert_eq!(debts.of(&keys[2]), None);
        let verdicts = vec![Verdict::Taken, later()];
        let (who, result) = debts.weigh(&keys[..1], &[0, 3], verdicts, start + 4 * LATE_FOR);
        assert!(who.is_empty() && result.is_err() && debts.of(&keys[0]) == Some(&[3][..]));
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
