#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/conversation.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("conversation"), |bytes: &[u8]| target::run(bytes));
