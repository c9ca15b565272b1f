use super::*;
use crate::packet::proto::testing::{
    Cut, Piece, assert_cuts_agree, assert_mutations_are_harmless, end, feed, recorded,
};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage, Told};

/// What was told, a line each.
fn show(out: &Out) -> Vec<String> {
    let fact = |told: &Told| {
        let Fact::Smb(exchange) = &told.fact else { panic!("{told:?}") };
        let text = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value}"));
        let parts = [
            Some(exchange.command.to_string()),
            Some(format!("[{}]", exchange.dialect)),
            text("share", &exchange.share),
            text("file", &exchange.file),
            text("to", &exchange.rename_to),
            exchange.user.as_ref().map(|(user, domain)| format!("user={domain}\\{user}")),
            (!exchange.offered.is_empty()).then(|| format!("offered={}", exchange.offered.join(","))),
            exchange.status.map(|status| format!("{status:#x}")),
        ];
        let start = format!("{} {:?}", told.tx, told.stage);
        parts.into_iter().flatten().fold(start, |line, part| format!("{line} {part}"))
    };
    let odd = out.oddities.iter().map(|(side, oddity)| format!("{side:?} {}", oddity.0));
    out.told.iter().map(fact).chain(odd).collect()
}

fn run(pieces: &[Piece]) -> Vec<String> {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, pieces, Cut::Whole);
    end(&mut parser, &mut out);
    show(&out)
}

#[test]
fn dump() {
    for name in ["smb1", "smb2_10", "smb3_11", "smb3_encrypted"] {
        println!("== {name}\n{}", run(&recorded(name)).join("\n"));
    }
}
