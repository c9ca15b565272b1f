#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/record.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("record"), |bytes: &[u8]| target::run(bytes));
