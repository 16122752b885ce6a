/** Where the server is and the credential, where the caller gives none. */

import { readFileSync } from "node:fs";

import { ConfigError } from "./errors.js";
import { Secret } from "./secret.js";

// Not `AEGIS_…`: the server refuses variables of that name that it does not know.
const [URL_VARIABLE, TOKEN_VARIABLE, TOKEN_FILE_VARIABLE] = ["AEGISAGENT_URL", "AEGISAGENT_TOKEN", "AEGISAGENT_TOKEN_FILE"] as const;

/** The server that the environment names. */
export function urlFromEnvironment(): string {
  return process.env[URL_VARIABLE] ?? "http://127.0.0.1:8484";
}

/** The credential that the environment names: in a variable, or in a file. */
export function tokenFromEnvironment(): Secret {
  const [path, text] = [process.env[TOKEN_FILE_VARIABLE], process.env[TOKEN_VARIABLE]];
  if (path && text) throw new ConfigError(`set ${TOKEN_VARIABLE} or ${TOKEN_FILE_VARIABLE}, not both`);
  if (path) return new Secret(contentOf(path));
  if (!text) throw new ConfigError(`set ${TOKEN_VARIABLE} or ${TOKEN_FILE_VARIABLE}`);
  return new Secret(text);
}

function contentOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    throw new ConfigError(`the file that ${TOKEN_FILE_VARIABLE} names cannot be read`);
  }
}
