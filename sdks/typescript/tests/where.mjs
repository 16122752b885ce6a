// Where the tests find what is not theirs. They are run beside what was installed from the packed package, not in the repository.

import path from "node:path";
import { fileURLToPath } from "node:url";

export const REPOSITORY = process.env.AEGIS_REPOSITORY ?? path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
export const CORPUS = path.join(REPOSITORY, "corpus");
export const PACKAGE = path.join(REPOSITORY, "sdks/typescript");
const INSTALLED = path.dirname(fileURLToPath(import.meta.resolve("aegisagent")));

/** A module of the installed package that it does not export. */
export const internal = async (name) => await import(path.join(INSTALLED, name));
