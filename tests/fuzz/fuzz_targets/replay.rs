#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/replay.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("replay"), |bytes: &[u8]| target::run(bytes));
