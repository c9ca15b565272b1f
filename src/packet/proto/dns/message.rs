//! One message: header, questions, records (RFC 1035, 4.1).

use super::name::push_name;
use super::{Edns, Message, Question, Record, data, kind};
use crate::packet::proto::reader::hex;

/// Bytes of the header.
const HEADER: usize = 12;

/// Questions that are kept; servers answer one.
const QUESTIONS_MAX: usize = 16;

/// Records of a message that are kept, of all sections.
const RECORDS_MAX: usize = 2048;

/// Bytes of text that a message may make. By pointers, a message of 64 KiB could make megabytes of names.
const TEXT_MAX: usize = 256 * 1024;

/// Where a message is being read, and what it may still make.
struct Reading<'a> {
    message: &'a [u8],
    at: usize,
    records_left: usize,
    text_left: usize,
}

/// Why reading stopped.
enum Fault {
    Malformed,
    TooMuch,
}

/// Reads a message as far as it goes; `None` if that is not even a question, or the record of a message without questions.
pub(super) fn read(message: &[u8], odd: &mut dyn FnMut(&'static str)) -> Option<Message> {
    let field =
        |number: usize| message.get(2 * number..2 * number + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (Some(id), Some(flags), Some(questions), Some(answers), Some(authorities), Some(additionals)) =
        (field(0), field(1), field(2), field(3), field(4), field(5))
    else {
        odd("dns.short_message");
        return None;
    };
    let mut read = Message { id, flags, ..Message::default() };
    let mut reading = Reading { message, at: HEADER, records_left: RECORDS_MAX, text_left: TEXT_MAX };
    let mut fault = reading.questions(questions, &mut read.queries).err();
    let sections =
        [(answers, &mut read.answers), (authorities, &mut read.authorities), (additionals, &mut read.additionals)];
    for (count, section) in sections {
        if fault.is_none() {
            fault = reading.records(count, section, &mut read.edns, odd).err();
        }
    }
    match fault {
        None if reading.at < message.len() => odd("dns.trailing_bytes"),
        None => {}
        Some(Fault::Malformed) => odd("dns.malformed_message"),
        Some(Fault::TooMuch) => odd("dns.too_much"),
    }
    let is_empty = read.queries.is_empty() && read.answers.is_empty() && read.additionals.is_empty();
    (fault.is_none() || !is_empty || !read.authorities.is_empty()).then_some(read)
}

impl Reading<'_> {
    fn name(&mut self) -> Result<String, Fault> {
        let mut name = String::new();
        self.at = push_name(&mut name, self.message, self.at, self.message.len()).ok_or(Fault::Malformed)?;
        self.charge(name.len())?;
        Ok(name)
    }

    fn charge(&mut self, length: usize) -> Result<(), Fault> {
        self.text_left = self.text_left.checked_sub(length).ok_or(Fault::TooMuch)?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.message.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or(Fault::Malformed)?;
        self.at += N;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    fn questions(&mut self, count: u16, into: &mut Vec<Question>) -> Result<(), Fault> {
        for number in 0..count {
            if usize::from(number) >= QUESTIONS_MAX {
                return Err(Fault::TooMuch);
            }
            into.push(Question { name: self.name()?, kind: self.u16()?, class: self.u16()? });
        }
        Ok(())
    }

    fn records(
        &mut self,
        count: u16,
        into: &mut Vec<Record>,
        edns: &mut Option<Edns>,
        odd: &mut dyn FnMut(&'static str),
    ) -> Result<(), Fault> {
        for _ in 0..count {
            let name = self.name()?;
            let (kind, class) = (self.u16()?, self.u16()?);
            let ttl = self.array().map(u32::from_be_bytes)?;
            let length = usize::from(self.u16()?);
            let start = self.at;
            self.at += length;
            if self.at > self.message.len() {
                return Err(Fault::Malformed);
            }
            if kind == kind::OPT {
                // Class and TTL hold other things there (RFC 6891, 6.1.3).
                let [rcode_high, version, flags, _] = ttl.to_be_bytes();
                *edns = Some(Edns { udp_size: class, rcode_high, version, is_dnssec_ok: flags & 0x80 != 0 });
                continue;
            }
            self.records_left = self.records_left.checked_sub(1).ok_or(Fault::TooMuch)?;
            let data = data::text(self.message, start..self.at, kind).unwrap_or_else(|| {
                odd("dns.malformed_record");
                hex(&self.message[start..self.at])
            });
            self.charge(data.len())?;
            into.push(Record { name, kind, class, ttl, data });
        }
        Ok(())
    }
}
