#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/quic.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("quic"), |bytes: &[u8]| target::run(bytes));
