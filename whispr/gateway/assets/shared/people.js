// Names of people, asked for once.
//
//   people = new People(api)   an EventTarget: "learned" (detail: a user id)
//     .learn({user_id, username, display_name}) · .name(id) · .username(id)   a name asked for is learned later
//     .search(text)            profiles whose user name or name begins with it

export class People extends EventTarget {
  #known = new Map();
  #asked = new Set();

  constructor(api) {
    super();
    this.api = api;
  }

  learn(person) {
    const id = person.user_id || person.id;
    if (!id || !person.username) return;
    const before = this.#known.get(id);
    this.#known.set(id, { username: person.username, display_name: person.display_name || person.username });
    if (before?.display_name !== this.#known.get(id).display_name) {
      this.dispatchEvent(new CustomEvent("learned", { detail: id }));
    }
  }

  name(id) {
    const person = this.#known.get(id);
    if (!person) this.#ask(id);
    return person?.display_name || "Somebody";
  }

  username(id) { return this.#known.get(id)?.username || ""; }

  async search(text) {
    const { users } = await this.api.get("/v1/users", { query: text, page_size: 20 });
    for (const user of users) this.learn(user);
    return users;
  }

  async #ask(id) {
    if (this.#asked.has(id)) return;
    this.#asked.add(id);
    try {
      const { profile } = await this.api.get(`/v1/users/${id}`);
      this.learn(profile);
    } catch (error) {
      if (error.retryable) this.#asked.delete(id);
      else this.learn({ id, username: "deleted", display_name: "Deleted account" });
    }
  }
}
