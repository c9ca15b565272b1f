//! A mail as it is handed over: where it ends, how long it is, its subject.

/// Longest line of a head that is looked at; what follows of it is passed over.
const LINE_MAX: usize = 1000;
/// Longest subject that is kept, unfolded.
const SUBJECT_MAX: usize = 1000;

/// Where in a line of a mail the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At its start.
    #[default]
    Start,
    /// Behind a dot that began it.
    Dot,
    /// Behind a dot that began it and a carriage return.
    DotCr,
    /// Anywhere else.
    Mid,
    /// Behind a carriage return.
    MidCr,
    /// Behind a carriage return, which no line feed followed, and a dot.
    CrDot,
}

/// How a mail's text departs from lines that end in CR LF: each is a way in which servers disagree about where it ends
/// ("SMTP smuggling", CVE-2023-51764 to 51766).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shapes {
    /// A line feed stood without carriage return.
    pub bare_lf: bool,
    /// A carriage return stood without line feed.
    pub bare_cr: bool,
    /// A dot alone between line ends of which one was not CR LF.
    pub false_end: bool,
}

/// Who is told the name of what is odd.
type Odd<'a> = &'a mut dyn FnMut(&'static str);

/// Notes a shape, and tells of it the first time.
fn first(is_seen: &mut bool, name: &'static str, odd: Odd<'_>) {
    if !*is_seen {
        *is_seen = true;
        odd(name);
    }
}

/// The text of DATA (RFC 5321, 4.1.1.4 and 4.5.2).
#[derive(Debug, Default)]
pub(super) struct Data {
    place: Place,
    /// The line before ended in a bare line feed.
    is_after_bare: bool,
    /// What was seen so far.
    pub shapes: Shapes,
}

impl Data {
    /// Takes bytes up to the end of the mail. Says how many, and whether the mail is at its end.
    ///
    /// `bytes_of_mail` grows by what the receiver stores: without doubled dots and the final one. `odd` is told the first
    /// time of each of the [`Shapes`].
    pub(super) fn take(&mut self, bytes: &[u8], bytes_of_mail: &mut u64, odd: Odd<'_>) -> (usize, bool) {
        let mut at = 0;
        let mut dots = 0;
        let mut is_end = false;
        while at < bytes.len() && !is_end {
            if self.place == Place::Mid {
                match memchr::memchr2(b'\r', b'\n', &bytes[at..]) {
                    None => at = bytes.len(),
                    // The common end of a line at once.
                    Some(found) if bytes[at + found..].starts_with(b"\r\n") => {
                        at += found + 2;
                        self.line_end(false, odd);
                    }
                    Some(found) => {
                        self.step(bytes[at + found], odd);
                        at += found + 1;
                    }
                }
                continue;
            }
            let was = self.place;
            is_end = self.step(bytes[at], odd);
            dots += u64::from(was == Place::Dot && self.place == Place::Mid);
            at += 1;
        }
        *bytes_of_mail = (*bytes_of_mail + at as u64).saturating_sub(dots + if is_end { 3 } else { 0 });
        (at, is_end)
    }

    /// Takes one byte; true at the end of the mail.
    fn step(&mut self, byte: u8, odd: Odd<'_>) -> bool {
        let is_after_cr = matches!(self.place, Place::DotCr | Place::MidCr);
        if is_after_cr && byte != b'\n' {
            first(&mut self.shapes.bare_cr, "smtp.mail_bare_cr", odd);
        }
        match (self.place, byte) {
            (Place::DotCr, b'\n') if !self.is_after_bare => return true,
            (Place::DotCr, b'\n') => {
                first(&mut self.shapes.false_end, "smtp.mail_false_end", odd);
                self.line_end(false, odd);
            }
            (Place::MidCr, b'\n') => self.line_end(false, odd),
            (Place::Dot | Place::CrDot, b'\n') => {
                first(&mut self.shapes.false_end, "smtp.mail_false_end", odd);
                self.line_end(true, odd);
            }
            (_, b'\n') => self.line_end(true, odd),
            (Place::Start, b'.') => self.place = Place::Dot,
            (Place::MidCr, b'.') => self.place = Place::CrDot,
            (Place::Dot, b'\r') => self.place = Place::DotCr,
            (Place::CrDot, b'\r') => {
                first(&mut self.shapes.false_end, "smtp.mail_false_end", odd);
                self.place = Place::MidCr;
            }
            (Place::DotCr, b'\r') => self.place = Place::MidCr,
            (_, b'\r') => self.place = Place::MidCr,
            (Place::DotCr, b'.') => self.place = Place::CrDot,
            _ => self.place = Place::Mid,
        }
        false
    }

    fn line_end(&mut self, is_bare: bool, odd: Odd<'_>) {
        if is_bare {
            first(&mut self.shapes.bare_lf, "smtp.mail_bare_lf", odd);
        }
        self.is_after_bare = is_bare;
        self.place = Place::Start;
    }

    /// Bytes are missing.
    pub(super) fn lose(&mut self) {
        self.place = Place::Mid;
    }
}

/// Looks for `Subject:` in the head of a mail (RFC 5322, 2.2).
#[derive(Debug, Default)]
pub(super) struct Head {
    line: Vec<u8>,
    subject: Option<Vec<u8>>,
    /// The line before is the subject's: a folded one goes on with it.
    is_in_subject: bool,
    is_over: bool,
}

impl Head {
    /// Takes the next bytes of the mail, as they were sent.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !self.is_over && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let (part, behind) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            let room = LINE_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            bytes = behind;
            if end.is_some() {
                self.line_is_whole();
            }
        }
    }

    fn line_is_whole(&mut self) {
        let end = self.line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let line = &self.line[..end];
        match line.first() {
            None => self.is_over = true,
            Some(b' ' | b'\t') => {
                // Unfolding takes out the line end only (RFC 5322, 2.2.3).
                if let (true, Some(subject)) = (self.is_in_subject, &mut self.subject) {
                    let room = SUBJECT_MAX.saturating_sub(subject.len());
                    subject.extend_from_slice(&line[..line.len().min(room)]);
                }
            }
            Some(_) => {
                let value = value_of(line, b"Subject");
                self.is_in_subject = value.is_some() && self.subject.is_none();
                if let (true, Some(value)) = (self.is_in_subject, value) {
                    self.subject = Some(value[..value.len().min(SUBJECT_MAX)].to_vec());
                }
            }
        }
        self.line.clear();
    }

    /// Bytes are missing: what stands around them is not one head.
    pub(super) fn lose(&mut self) {
        self.is_over = true;
    }

    /// The subject, without space around it; at the end of the mail.
    pub(super) fn into_subject(self) -> Option<Vec<u8>> {
        self.subject.map(|subject| subject.trim_ascii().to_vec())
    }

    /// Bytes that it keeps, about.
    pub(super) fn memory(&self) -> usize {
        self.line.capacity() + self.subject.as_ref().map_or(0, Vec::capacity)
    }
}

/// The value of a field if it has this name.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let rest = rest.trim_ascii_start();
    (start.eq_ignore_ascii_case(name) && rest.first() == Some(&b':')).then(|| &rest[1..])
}
