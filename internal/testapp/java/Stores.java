// Spring Session's repositories on Lettuce, used as by an application: see stores.go.
import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.springframework.data.redis.connection.RedisStandaloneConfiguration;
import org.springframework.data.redis.connection.lettuce.LettuceConnectionFactory;
import org.springframework.data.redis.core.RedisTemplate;
import org.springframework.data.redis.serializer.RedisSerializer;
import org.springframework.session.Session;
import org.springframework.session.SessionRepository;
import org.springframework.session.data.redis.RedisIndexedSessionRepository;
import org.springframework.session.data.redis.RedisSessionRepository;

public class Stores {
    static void say(String step, Object value) { System.out.println(step + ": " + value); }

    static SessionRepository<? extends Session> open(String repository, String url) {
        var at = URI.create(url);
        var config = new RedisStandaloneConfiguration(at.getHost(), at.getPort());
        config.setDatabase(Integer.parseInt(at.getPath().substring(1)));
        var factory = new LettuceConnectionFactory(config);
        factory.afterPropertiesSet();
        factory.start();
        var template = new RedisTemplate<String, Object>();
        template.setKeySerializer(RedisSerializer.string());
        template.setHashKeySerializer(RedisSerializer.string());
        template.setConnectionFactory(factory);
        template.afterPropertiesSet();
        if (repository.equals("indexed")) {
            var sessions = new RedisIndexedSessionRepository(template);
            sessions.setDefaultMaxInactiveInterval(Duration.ofHours(1));
            return sessions;
        }
        var sessions = new RedisSessionRepository(template);
        sessions.setDefaultMaxInactiveInterval(Duration.ofHours(1));
        return sessions;
    }

    static String user(SessionRepository<? extends Session> sessions, String id) {
        Session s = sessions.findById(id);
        return s == null ? "nobody" : s.getAttribute("user");
    }

    public static void main(String[] args) {
        try {
            pages(open(args[0], args[1]), open(args[0], args[2]));
            System.exit(0);
        } catch (Throwable e) {
            e.printStackTrace();
            System.exit(1);
        }
    }

    static <S extends Session> void pages(SessionRepository<S> sessions, SessionRepository<? extends Session> there) throws Exception {
        say("unknown id", user(sessions, "nobody"));
        S s = sessions.createSession();
        s.setAttribute("user", "alice");
        sessions.save(s);
        String id = s.getId();
        say("read", user(sessions, id));
        s = sessions.findById(id);
        s.setAttribute("user", "Gr\u00fc\u00dfe\r\n\0");
        s.setAttribute("n", 7);
        sessions.save(s);
        say("change", user(sessions, id).length() + " " + sessions.findById(id).getAttribute("n"));
        s = sessions.findById(id);
        s.setAttribute("user", "x".repeat(300000));
        s.removeAttribute("n");
        sessions.save(s);
        say("large", user(sessions, id).length() + " " + sessions.findById(id).getAttributeNames());
        s = sessions.findById(id);
        s.setAttribute("user", "carol");
        s.setMaxInactiveInterval(Duration.ofHours(2));
        sessions.save(s);
        say("live longer", sessions.findById(id).getMaxInactiveInterval());
        s = sessions.findById(id);
        String now = s.changeSessionId();
        sessions.save(s);
        say("change id", user(sessions, id) + " " + user(sessions, now));
        S late = sessions.findById(now);
        sessions.deleteById(now);
        say("delete", user(sessions, now));
        try { // a page that began before
            late.setAttribute("user", "late");
            sessions.save(late);
            say("late", "saved");
        } catch (IllegalStateException e) {
            say("late", e.getMessage());
        }

        S brief = sessions.createSession();
        brief.setAttribute("user", "bob");
        brief.setMaxInactiveInterval(Duration.ofSeconds(1));
        sessions.save(brief);
        while (!user(sessions, brief.getId()).equals("nobody")) Thread.sleep(20);
        say("live for a second", user(sessions, brief.getId()));

        var pool = Executors.newFixedThreadPool(10);
        var ids = new ArrayList<Future<String>>();
        for (int n = 0; n < 20; n++) {
            boolean stays = n == 0;
            String name = "user" + n;
            ids.add(pool.submit(() -> {
                S one = sessions.createSession();
                one.setAttribute("user", name);
                sessions.save(one);
                for (int i = 0; i < 10; i++)
                    if (!user(sessions, one.getId()).equals(name)) throw new Exception(name);
                if (!stays) sessions.deleteById(one.getId());
                return one.getId();
            }));
        }
        for (var one : ids) one.get();
        say("at once", ids.size());
        say("kept", user(there, ids.get(0).get()));
    }
}
