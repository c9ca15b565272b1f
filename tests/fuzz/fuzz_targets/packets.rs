#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/packets.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("packets"), |bytes: &[u8]| target::run(bytes));
