#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/config.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("config"), |bytes: &[u8]| target::run(bytes));
