#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/patterns.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("patterns"), |bytes: &[u8]| target::run(bytes));
