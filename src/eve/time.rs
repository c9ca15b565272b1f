//! Times as EVE writes them, in UTC.

use super::json::Json;

/// Formats times; that of the second before is kept, because many events fall into one.
#[derive(Debug)]
pub struct Stamp {
    second: u64,
    /// `2026-11-30T18:40:31`.
    text: [u8; 19],
}

impl Default for Stamp {
    fn default() -> Stamp {
        Stamp { second: 0, text: *b"1970-01-01T00:00:00" }
    }
}

impl Stamp {
    /// `"2026-11-30T18:40:31.123456+0000"` with its quotes, of nanoseconds since 1970.
    pub fn write(&mut self, json: &mut Json, time_ns: u64) {
        let second = time_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            // 64 bits of nanoseconds end in the year 2554.
            self.text = civil(second as i64);
        }
        json.raw(b"\"");
        json.raw(&self.text);
        json.raw(b".");
        json.padded(time_ns / 1000 % 1_000_000, 6);
        json.raw(b"+0000\"");
    }
}

/// `2026-11-30T18:40:31`, of seconds since 1970; years outside of 0 to 9999 are shown as the nearest of those.
pub fn civil(seconds: i64) -> [u8; 19] {
    const FIRST: i64 = -62_167_219_200;
    const LAST: i64 = 253_402_300_799;
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March have their odd day last, and their months in a pattern of 153 days for five.
    let days = days + 719_468;
    let era_day = days.rem_euclid(146_097);
    let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + 400 * days.div_euclid(146_097) + i64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00";
    let mut set = |at: usize, width: usize, mut value: i64| {
        for place in text[at..at + width].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    set(0, 4, year);
    set(5, 2, month);
    set(8, 2, day);
    set(11, 2, second / 3600);
    set(14, 2, second / 60 % 60);
    set(17, 2, second % 60);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_those_of_jiff(second in -62_167_219_200i64..=253_402_207_200) {
            let expected = jiff::Timestamp::from_second(second).unwrap().strftime("%Y-%m-%dT%H:%M:%S").to_string();
            let written = civil(second);
            prop_assert_eq!(std::str::from_utf8(&written).unwrap(), expected);
        }

        #[test]
        fn a_stamp_does_not_depend_on_the_one_before(times in proptest::collection::vec(0u64..3_000_000_000, 1..20)) {
            let mut kept = Stamp::default();
            for time in times {
                let (mut one, mut other) = (Json::default(), Json::default());
                kept.write(&mut one, time);
                Stamp::default().write(&mut other, time);
                prop_assert_eq!(one.bytes(), other.bytes());
            }
        }
    }

    #[test]
    fn a_time_has_microseconds_and_a_zone() {
        let mut json = Json::default();
        Stamp::default().write(&mut json, 1_796_064_031_123_456_789);
        assert_eq!(json.bytes(), b"\"2026-11-30T18:40:31.123456+0000\"");
        assert_eq!(&civil(i64::MAX), b"9999-12-31T23:59:59");
        assert_eq!(&civil(i64::MIN), b"0000-01-01T00:00:00");
    }
}
