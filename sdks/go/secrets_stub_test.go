package aegisagent_test

const secretArgument = "hunter2-and-the-rest"
