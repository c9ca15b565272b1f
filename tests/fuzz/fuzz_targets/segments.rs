#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/segments.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("segments"), |bytes: &[u8]| target::run(bytes));
