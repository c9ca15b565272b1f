//! The Huffman code of HPACK (RFC 7541, appendix B).
//!
//! It is canonical: codes of one length follow each other by symbol, and those of the next length go on from there. So the
//! lengths say everything, and the tables are reckoned from them at compile time.

/// Bits of each symbol's code; the last one is the end of a string.
const BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, //
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, //
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, //
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, //
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const END: u16 = 256;
const LONGEST: usize = 30;
/// Codes up to this length are found in one look; they are those of all that stands in ordinary fields.
const SHORT: u32 = 8;

/// What the lengths amount to.
struct Tables {
    /// Symbols by length of code, then by value.
    symbols: [u16; 257],
    /// By length: the first code behind those of this length, left-aligned to 32 bits.
    ends: [u64; LONGEST + 1],
    /// By length: the first code, right-aligned, and where its symbol stands in `symbols`.
    firsts: [(u32, u16); LONGEST + 1],
    /// By the next bits: symbol and length of the code that they start with; length 0 for longer ones.
    short: [(u8, u8); 1 << SHORT],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables {
        symbols: [0; 257],
        ends: [0; LONGEST + 1],
        firsts: [(0, 0); LONGEST + 1],
        short: [(0, 0); 1 << SHORT],
    };
    let (mut code, mut place, mut bits) = (0_u32, 0, 1);
    while bits <= LONGEST {
        code <<= 1;
        tables.firsts[bits] = (code, place as u16);
        let mut symbol = 0;
        while symbol < BITS.len() {
            if BITS[symbol] as usize == bits {
                tables.symbols[place] = symbol as u16;
                place += 1;
                if bits <= SHORT as usize {
                    let spare = SHORT as usize - bits;
                    let mut at = (code as usize) << spare;
                    while at < (code as usize + 1) << spare {
                        tables.short[at] = (symbol as u8, bits as u8);
                        at += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        tables.ends[bits] = (code as u64) << (32 - bits);
        bits += 1;
    }
    tables
}

/// Decodes a string behind what is in `out`. `None` when it holds the end symbol, or does not end in its bits (RFC 7541, 5.2).
pub(super) fn decode(wire: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // The bits that are not decoded yet, left-aligned, and how many of them are from the wire.
    let (mut window, mut have) = (0_u64, 0_u32);
    let mut wire = wire.iter();
    out.reserve(wire.len() * 8 / 5);
    loop {
        while have <= 56 {
            let Some(&byte) = wire.next() else { break };
            window |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let next = (window >> 32) as u32;
        let (symbol, bits) = match TABLES.short[(next >> (32 - SHORT)) as usize] {
            (_, 0) => long(next)?,
            (symbol, bits) => (u16::from(symbol), u32::from(bits)),
        };
        if bits > have {
            // What is left is padding: fewer than eight bits, all set.
            let padding = !(u64::MAX.checked_shr(have).unwrap_or(0));
            return (have < 8 && window == padding).then_some(());
        }
        if symbol == END {
            return None;
        }
        out.push(symbol as u8);
        window <<= bits;
        have -= bits;
    }
}

/// A code that is longer than [`SHORT`].
fn long(next: u32) -> Option<(u16, u32)> {
    let bits = (SHORT as usize + 1..=LONGEST).find(|&bits| u64::from(next) < TABLES.ends[bits])?;
    let (first, place) = TABLES.firsts[bits];
    let offset = (next >> (32 - bits)) - first;
    Some((TABLES.symbols[place as usize + offset as usize], bits as u32))
}

/// Encodes a string; for tests, which need both directions.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let code_of = |symbol: u8| {
        let bits = BITS[symbol as usize];
        let (first, place) = TABLES.firsts[bits as usize];
        let at = TABLES.symbols[place as usize..].iter().position(|&each| each == u16::from(symbol)).unwrap();
        (first + at as u32, bits)
    };
    let (mut out, mut window, mut have) = (Vec::new(), 0_u64, 0);
    for (code, bits) in text.iter().map(|&symbol| code_of(symbol)) {
        window = window << bits | u64::from(code);
        have += bits;
        while have >= 8 {
            have -= 8;
            out.push((window >> have) as u8);
        }
    }
    if have > 0 {
        out.push((window << (8 - have)) as u8 | (0xff >> have));
    }
    out
}
