// Verifies payloads by the npm libraries that customers use. In: [{library, secret, body, headers}], out: [true, false, …].
import { Webhook as Standard } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const libraries = { standardwebhooks: Standard, svix: Svix };
let input = "";
for await (const chunk of process.stdin) input += chunk;
const found = JSON.parse(input).map(({ library, secret, body, headers }) => {
  try {
    new libraries[library](secret).verify(body, headers);
    return true;
  } catch (error) {
    if (!error.constructor.name.includes("WebhookVerificationError")) throw error;
    return false;
  }
});
console.log(JSON.stringify(found));
