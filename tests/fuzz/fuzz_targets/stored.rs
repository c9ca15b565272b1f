#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/stored.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("stored"), |bytes: &[u8]| target::run(bytes));
